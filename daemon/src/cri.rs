//! The image service of Kubernetes' runtime interface, between the kubelet and containerd.
//!
//! The kubelet gives an image's credentials to whoever it asks to pull it, and to nobody else. So it asks us: every call
//! goes on to containerd as it came, and what a pull was allowed with is kept for our own
//! requests, as long as the image is there.

mod auth;
mod kept;
mod keychain;
mod proxy;

pub use self::keychain::Keychain;
pub use self::proxy::ImageService;
#[cfg(any(test, fuzzing))]
pub(crate) use self::proxy::probe;
