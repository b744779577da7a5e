//! Messages between processes that can carry a file descriptor.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Longest text of a message, in bytes.
pub(super) const LONGEST: usize = 512;

/// A text, and a descriptor if one came with it.
pub(super) type Message = (String, Option<OwnedFd>);

/// Sends one packet.
///
/// # Errors
/// The text is too long, or the other end is gone.
pub(super) fn send(
    socket: impl AsFd,
    text: &str,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    if text.len() > LONGEST {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let numbers: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &[] } else { &rights[..] };
    let parts = [IoSlice::new(text.as_bytes())];
    let raw = socket.as_fd().as_raw_fd();
    loop {
        match sendmsg::<()>(raw, &parts, rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// Waits for one packet; `None` when the other end has closed the socket.
///
/// # Errors
/// The packet is no message, or the connection failed.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<Message>> {
    let mut text = [0; LONGEST];
    let (length, truncated, descriptors) = receive_into(&mut text, socket.as_fd())?;
    if truncated {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    if length == 0 {
        return Ok(None);
    }
    let text = std::str::from_utf8(&text[..length]).map_err(io::Error::other)?;
    Ok(Some((text.to_owned(), descriptors.into_iter().next())))
}

fn receive_into(
    text: &mut [u8],
    socket: BorrowedFd<'_>,
) -> io::Result<(usize, bool, Vec<OwnedFd>)> {
    let mut room = nix::cmsg_space!([RawFd; 1]);
    loop {
        let mut parts = [IoSliceMut::new(text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags) {
            Err(Errno::EINTR) => continue,
            message => message?,
        };
        let truncated = message
            .flags
            .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and nothing
                // else knows their numbers.
                let owned = |number| unsafe { OwnedFd::from_raw_fd(number) };
                descriptors.extend(numbers.into_iter().map(owned));
            }
        }
        return Ok((message.bytes, truncated, descriptors));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::File;
    use std::io::Read as _;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    #[test]
    fn a_descriptor_arrives_open_and_the_end_is_told() {
        let kind = SockType::SeqPacket;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, two) = socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&one, "here", Some(writer.as_fd())).unwrap();
        send(&one, "more", None).unwrap();
        drop(writer);
        let (text, descriptor) = receive(&two).unwrap().unwrap();
        assert_eq!(text, "here");
        io::Write::write_all(&mut File::from(descriptor.unwrap()), b"x").unwrap();
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"x");
        assert!(matches!(receive(&two).unwrap(), Some((text, None)) if text == "more"));
        drop(one);
        assert!(receive(&two).unwrap().is_none());
        assert!(send(&two, "x", None).is_err());
    }

    #[test]
    fn a_message_longer_than_any_of_ours_is_refused() {
        let kind = SockType::SeqPacket;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, two) = socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
        assert!(send(&one, &"x".repeat(LONGEST + 1), None).is_err());
        nix::unistd::write(&one, &[b'x'; LONGEST + 1]).unwrap();
        assert!(receive(&two).is_err());
    }
}
