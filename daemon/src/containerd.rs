//! A client of containerd: content, images, leases, snapshots and diffs, over its Unix socket.
//!
//! Every request carries the namespace, and the lease if there is one: content written and
//! snapshots prepared under a lease are safe from garbage collection until it is deleted.

mod content;
mod images;
mod leases;
mod snapshots;

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

pub use content::ContentInfo;
pub use images::Image;
pub use leases::Lease;
pub use snapshots::{PreparedSnapshot, Snapshotter};

/// Where containerd listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";
/// The namespace of `ctr` and `nerdctl` unless told otherwise.
pub const DEFAULT_NAMESPACE: &str = "default";

/// containerd itself limits messages to 16 MiB.
const MAX_MESSAGE_SIZE: usize = 16 << 20;

/// A connection to containerd in one namespace. Clones share it; it is made when first needed,
/// and again when it broke.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    address: PathBuf,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

/// A request to containerd failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerdError {
    /// containerd answered with an error, or could not be reached.
    #[error("containerd at {address}: cannot {action}: {}", describe(status))]
    Request {
        /// The socket.
        address: String,
        /// What was to be done, with the object's name.
        action: String,
        /// The answer.
        status: Box<Status>,
    },
    /// Something given to containerd, or taken from it, makes no sense.
    #[error("containerd at {address}: {action}: {detail}")]
    Malformed {
        /// The socket.
        address: String,
        /// What was being done.
        action: String,
        /// What is wrong.
        detail: String,
    },
    /// The bytes to be stored could not be read.
    #[error("containerd at {address}: cannot {action}: reading the content failed")]
    Source {
        /// The socket.
        address: String,
        /// What was being done.
        action: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl ContainerdError {
    /// The gRPC status, where containerd answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Request { status, .. } => Some(status.code()),
            _ => None,
        }
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// Whether the object exists already.
    pub fn is_already_exists(&self) -> bool {
        self.code() == Some(Code::AlreadyExists)
    }
}

fn describe(status: &Status) -> String {
    let mut text = match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        // tonic puts some causes into the message already.
        let cause_text = error.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        cause = error.source();
    }
    text
}

impl Containerd {
    /// A client of the containerd at the socket `address`. Connects with the first request; must
    /// be called within a tokio runtime.
    pub fn new(address: &Path, namespace: &str) -> Result<Self, ContainerdError> {
        let malformed = |detail: String| ContainerdError::Malformed {
            address: address.display().to_string(),
            action: "setting up the client".to_owned(),
            detail,
        };
        let channel = channel(address);
        if !is_identifier(namespace) {
            return Err(malformed(format!("{namespace:?} is not a namespace")));
        }
        let namespace = namespace
            .parse()
            .map_err(|_| malformed(format!("{namespace:?} is not a namespace")))?;
        Ok(Self {
            channel,
            address: strip_scheme(address),
            namespace,
            lease: None,
        })
    }

    /// The socket.
    pub fn address(&self) -> &Path {
        &self.address
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        request
    }

    fn failed(&self, action: impl Into<String>) -> impl FnOnce(Status) -> ContainerdError {
        let (address, action) = (self.address.display().to_string(), action.into());
        move |status| ContainerdError::Request {
            address,
            action,
            status: Box::new(status),
        }
    }

    fn malformed(&self, action: impl Into<String>, detail: impl Into<String>) -> ContainerdError {
        ContainerdError::Malformed {
            address: self.address.display().to_string(),
            action: action.into(),
            detail: detail.into(),
        }
    }
}

/// A channel to the socket `address`, connected when it is first used. Must be called within a tokio runtime.
pub(crate) fn channel(address: &Path) -> Channel {
    let socket = strip_scheme(address);
    // The URI only fills the HTTP/2 authority; the connector decides where to connect.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ))
}

/// `ctr` and the daemon's configuration also accept `unix://PATH`.
fn strip_scheme(address: &Path) -> PathBuf {
    address
        .to_str()
        .and_then(|text| text.strip_prefix("unix://"))
        .map_or_else(|| address.to_owned(), PathBuf::from)
}

/// containerd's identifiers: at most 76 of letters, digits, `_`, `-`, `.`.
fn is_identifier(text: &str) -> bool {
    (1..=76).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Answers `None` where the object does not exist.
fn optional<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}
