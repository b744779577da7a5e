//! A link of limited bandwidth and with delay, for registries that are not next door.
//!
//! The registry runs in a network namespace of its own behind a veth pair, whose end there a token
//! bucket (`tbf`) limits. Delay comes from a [relay](Relay) on loopback in front of it, as netem is not in
//! every kernel; clients see only the relay's address, so that plain HTTP is plain HTTP.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::{command, run};
use crate::relay::Relay;
use crate::scratch::Scratch;

/// Port of the service at the far end.
const PORT: u16 = 5000;
/// What the token bucket lets through at once: enough for the largest segments of a fast link.
const BURST: &str = "512kb";
/// Longest time that a packet waits in the token bucket's queue.
const QUEUE: &str = "100ms";

/// What a link is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// Bits per second from the far end; `None` is as fast as the machine is.
    pub rate: Option<u64>,
    /// Round-trip time that is added: to each connection's start, and to each answer.
    pub delay: Duration,
}

/// One link; taken down when dropped. One at a time in a process.
#[derive(Debug)]
pub struct Link {
    namespace: String,
    far: Ipv4Addr,
    relay: Relay,
}

impl Shape {
    /// Whether there is nothing to shape.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rate {
            None => f.write_str("no limit")?,
            Some(rate) if rate % 1_000_000_000 == 0 => {
                write!(f, "{} Gbit/s", rate / 1_000_000_000)?
            }
            Some(rate) => write!(f, "{} Mbit/s", rate / 1_000_000)?,
        }
        write!(f, ", {} ms", self.delay.as_millis())
    }
}

impl Link {
    /// Makes the namespace, named after `scratch`, whose sweep removes it in any case.
    pub fn open(scratch: &Scratch, shape: Shape) -> Result<Self> {
        let namespace = scratch.name();
        let (near, far) = addresses();
        ip(&["netns", "add", &namespace])?;
        let relay = Relay::start(SocketAddr::from((far, PORT)), shape.delay);
        let link = Self {
            namespace,
            far,
            relay: relay?,
        };
        link.connect(near, shape)?;
        Ok(link)
    }

    fn connect(&self, near: Ipv4Addr, shape: Shape) -> Result<()> {
        let ns = self.namespace.as_str();
        let here = device(near);
        let there = format!("{here}f");
        ip(&[
            "link", "add", &here, "type", "veth", "peer", "name", &there, "netns", ns,
        ])?;
        ip(&["addr", "add", &format!("{near}/30"), "dev", &here])?;
        ip(&["link", "set", &here, "up"])?;
        ip(&[
            "-n",
            ns,
            "addr",
            "add",
            &format!("{}/30", self.far),
            "dev",
            &there,
        ])?;
        ip(&["-n", ns, "link", "set", &there, "up"])?;
        ip(&["-n", ns, "link", "set", "lo", "up"])?;
        if let Some(rate) = shape.rate {
            let rate = format!("{rate}bit");
            let bucket = ["tbf", "rate", &rate, "burst", BURST, "latency", QUEUE];
            let mut tc = command("tc");
            tc.args(["-n", ns, "qdisc", "add", "dev", &there, "root"]);
            run(tc.args(bucket)).context("cannot limit the bandwidth")?;
        }
        Ok(())
    }

    /// `program`, to be run at the far end.
    pub fn far_command(&self, program: &str) -> Command {
        let mut there = command("ip");
        there.args(["netns", "exec", &self.namespace, program]);
        there
    }

    /// Where the service at the far end has to listen.
    pub fn far_address(&self) -> SocketAddr {
        SocketAddr::from((self.far, PORT))
    }

    /// Bytes that came from the far end so far; goes on counting.
    pub fn passed(&self) -> Arc<AtomicU64> {
        self.relay.passed()
    }

    /// Where it is to be reached from here.
    pub fn near_address(&self) -> SocketAddr {
        self.relay.address()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // With the namespace it would go some time later, and its name with it, which the next link takes.
        let near = Ipv4Addr::from(u32::from(self.far) - 1);
        let _ = command("ip")
            .args(["link", "delete", &device(near)])
            .output();
        remove(&self.namespace);
    }
}

/// Removes a namespace and with it both ends of its link; nothing if there is none.
pub(crate) fn remove(namespace: &str) {
    // Fails if it is not there, which is what is wanted.
    let _ = command("ip").args(["netns", "delete", namespace]).output();
}

/// A pair of addresses that no other living process has taken: they are made of its number.
fn addresses() -> (Ipv4Addr, Ipv4Addr) {
    let number = (std::process::id() << 2) & 0xffff;
    let base = u32::from(Ipv4Addr::new(10, 203, 0, 0)) | number;
    (Ipv4Addr::from(base | 1), Ipv4Addr::from(base | 2))
}

/// The near end of the link of that address.
fn device(near: Ipv4Addr) -> String {
    format!("span{}", u32::from(near) % (1 << 16))
}

fn ip(arguments: &[&str]) -> Result<String> {
    run(command("ip").args(arguments))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::time::Instant;

    use crate::service::Service;

    #[test]
    fn a_link_limits_what_comes_through_it_and_delays_each_answer() {
        let scratch = Scratch::new().unwrap();
        let shape = Shape {
            rate: Some(80_000_000),
            delay: Duration::from_millis(100),
        };
        let link = Link::open(&scratch, shape).unwrap();
        // busybox's httpd, as there is one on every machine that runs these tests.
        let root = scratch.dir("www").unwrap();
        std::fs::write(root.join("small"), "x").unwrap();
        std::fs::write(root.join("large"), vec![0; 20_000_000]).unwrap();
        let mut httpd = link.far_command("busybox");
        httpd.args(["httpd", "-f", "-p", &link.far_address().to_string(), "-h"]);
        let log = scratch.path().join("httpd.log");
        let mut httpd = Service::start("httpd", httpd.arg(&root), &log).unwrap();
        let get = |name: &str| {
            let start = Instant::now();
            let mut stream = TcpStream::connect(link.near_address()).unwrap();
            write!(stream, "GET /{name} HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            (answer.len(), start.elapsed())
        };
        httpd.wait_ready(|| get("small").0 > 1).unwrap();
        let (_, small) = get("small");
        assert!(
            small >= Duration::from_millis(200),
            "connection and answer: {small:?}"
        );
        let (length, large) = get("large");
        assert!(length > 20_000_000);
        // 2 s on the link; the bucket's burst comes for nothing.
        assert!(large >= Duration::from_millis(1900), "{large:?}");
        drop(httpd);
        drop(link);
        scratch.assert_clean().unwrap();
        let left = ip(&["netns", "list"]).unwrap();
        assert!(!left.contains(&scratch.name()), "{left}");
    }
}
