//! How often, on which host and after which wait a request is made again.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::Instant;

use super::config::HttpConfig;
use super::error::{Asked, Problem, RegistryError};
use super::hosts::Endpoint;

/// What is being asked for, for error texts.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) object: String,
    pub(crate) repository: String,
}

impl Subject {
    pub(crate) fn error(&self, host: &str, problem: Problem) -> RegistryError {
        let asked = Asked {
            object: self.object.clone(),
            repository: self.repository.clone(),
            host: host.to_owned(),
        };
        RegistryError {
            asked: Box::new(asked),
            problem,
        }
    }
}

/// The tries of one call: each host once a round, rounds apart by a growing wait with jitter, all
/// within a number of rounds and a deadline.
#[derive(Debug)]
pub(crate) struct Attempts {
    subject: Subject,
    policy: HttpConfig,
    hosts: Vec<Try>,
    current: usize,
    retries: u32,
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct Try {
    endpoint: Arc<Endpoint>,
    failure: Option<Problem>,
}

impl Attempts {
    /// Tries over `hosts` (at least one) until the policy's request timeout has passed.
    pub(crate) fn new(subject: Subject, hosts: Vec<Arc<Endpoint>>, policy: &HttpConfig) -> Self {
        let tries = hosts.into_iter().map(|endpoint| Try {
            endpoint,
            failure: None,
        });
        Self {
            subject,
            policy: policy.clone(),
            hosts: tries.collect(),
            current: 0,
            retries: 0,
            deadline: Some(Instant::now() + policy.request_timeout),
        }
    }

    /// Begins with the host after the first, if there is one.
    pub(crate) fn next_host_first(mut self) -> Self {
        if self.hosts.len() > 1 {
            self.hosts.rotate_left(1);
        }
        self
    }

    /// Without a deadline, for calls that are over when they stop getting on.
    pub(crate) fn unlimited(self) -> Self {
        Self {
            deadline: None,
            ..self
        }
    }

    /// The host whose turn it is.
    pub(crate) fn endpoint(&self) -> Arc<Endpoint> {
        self.hosts[self.current].endpoint.clone()
    }

    /// Runs one try within the host's and the call's time limits.
    pub(crate) async fn limited<T>(
        &self,
        attempt: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let own = self.hosts[self.current].endpoint.request_timeout;
        let left = self
            .deadline
            .map_or(own, |deadline| deadline.duration_since(Instant::now()));
        let limit = own.min(left);
        tokio::time::timeout(limit, attempt)
            .await
            .unwrap_or(Err(Problem::Timeout {
                awaited: "complete answer",
                limit,
            }))
    }

    /// The call gets on: earlier failures no longer count.
    pub(crate) fn progressed(&mut self) {
        self.retries = 0;
    }

    /// The error of a failure after which nothing can be tried.
    pub(crate) fn fatal(&self, problem: Problem) -> RegistryError {
        self.subject
            .error(&self.hosts[self.current].endpoint.name, problem)
    }

    /// Notes that the current host failed, and waits until it is the next one's turn. An error when
    /// no host is left, or no try, or no time.
    pub(crate) async fn failed(&mut self, problem: Problem) -> Result<(), RegistryError> {
        let failing = &mut self.hosts[self.current];
        tracing::debug!(host = failing.endpoint.name, object = self.subject.object, %problem, "request failed");
        if problem.is_unreachable() {
            failing.endpoint.rest();
        }
        let asked_wait = problem.retry_after();
        failing.failure = Some(problem);
        if let Some(next) = self.next_after(self.current) {
            self.current = next;
            return Ok(());
        }
        self.next_round(asked_wait).await
    }

    async fn next_round(&mut self, asked_wait: Option<Duration>) -> Result<(), RegistryError> {
        let Some(first) = self.first_usable() else {
            return Err(self.conclusion());
        };
        if self.retries >= self.policy.max_retries {
            return Err(self.conclusion());
        }
        self.retries += 1;
        let wait = self.backoff().max(asked_wait.unwrap_or_default());
        let too_late = self
            .deadline
            .is_some_and(|deadline| Instant::now() + wait >= deadline);
        if too_late || wait > self.policy.max_wait {
            return Err(self.conclusion());
        }
        tokio::time::sleep(wait).await;
        self.current = first;
        Ok(())
    }

    fn usable(&self, index: usize) -> bool {
        self.hosts[index]
            .failure
            .as_ref()
            .is_none_or(Problem::is_transient)
    }

    fn next_after(&self, index: usize) -> Option<usize> {
        (index + 1..self.hosts.len()).find(|index| self.usable(*index))
    }

    fn first_usable(&self) -> Option<usize> {
        (0..self.hosts.len()).find(|index| self.usable(*index))
    }

    /// Doubles with each retry; between half and all of it, so that clients that failed together do
    /// not come back together.
    fn backoff(&self) -> Duration {
        let doublings = self.retries.saturating_sub(1).min(20);
        let full = self
            .policy
            .min_wait
            .saturating_mul(1 << doublings)
            .min(self.policy.max_wait);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// The origin's failure if it was asked: it knows best what there is.
    fn conclusion(&mut self) -> RegistryError {
        let origin = self
            .hosts
            .iter()
            .position(|host| !host.endpoint.is_mirror() && host.failure.is_some());
        let failing = &mut self.hosts[origin.unwrap_or(self.current)];
        let name = failing.endpoint.name.clone();
        let problem = failing
            .failure
            .take()
            .unwrap_or_else(|| Problem::malformed("no host was asked"));
        self.subject.error(&name, problem)
    }
}

/// Longer than anybody waits. What a registry or a wrong clock makes of it could not be added to a time.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// `Retry-After` as seconds or as an HTTP date; a past date is no wait, garbage is nothing. A day at most.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            date.duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parsed(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        retry_after(&headers)
    }

    #[test]
    fn retry_after_is_read_in_every_form() {
        assert_eq!(parsed("0"), Some(Duration::ZERO));
        assert_eq!(parsed(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(
            parsed("Wed, 21 Oct 2015 07:28:00 GMT"),
            Some(Duration::ZERO)
        );
        for garbage in ["-1", "soon", "", "1e9", "99999999999999999999999"] {
            assert_eq!(parsed(garbage), None, "{garbage}");
        }
        for endless in ["18446744073709551615", "Fri, 31 Dec 9999 23:59:59 GMT"] {
            assert_eq!(parsed(endless), Some(LONGEST_WAIT), "{endless}");
        }
        let hour = SystemTime::now() + Duration::from_secs(3600);
        let wait = parsed(&httpdate::fmt_http_date(hour)).unwrap();
        assert!((3590..=3600).contains(&wait.as_secs()));
    }
}
