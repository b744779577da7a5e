//! The calls themselves, passed on as bytes: what we do not know of them (fields, methods, streams) arrives too.

use std::convert::Infallible;
use std::path::Path;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use prost::Message;
use proto::runtime::v1::{PullImageRequest, PullImageResponse, RemoveImageRequest};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt as _};

use super::auth;
use super::keychain::{Before, Keychain};
use crate::containerd;
use crate::registry::Reference;

/// gRPC's name of the service.
const NAME: &str = "runtime.v1.ImageService";
/// Largest request and largest answer to a pull, in bytes: what the kubelet and containerd limit messages to.
const MAX_MESSAGE: usize = 16 << 20;
/// A flag of compression and the length, before each message.
const FRAME_HEAD: usize = 5;

/// The image service, for the daemon's gRPC server.
#[derive(Debug, Clone)]
pub struct ImageService {
    channel: Channel,
    address: String,
    keychain: Keychain,
}

impl ImageService {
    /// Passes calls on to the image service at the socket `address`, and notes credentials in `keychain`. Connects with
    /// the first call. Must be called within a runtime.
    pub fn new(address: &Path, keychain: Keychain) -> Self {
        Self {
            channel: containerd::channel(address),
            address: address.display().to_string(),
            keychain,
        }
    }

    async fn answer(&mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        match method {
            "PullImage" => self.pull(request).await,
            "RemoveImage" => self.remove(request).await,
            _ => self.pass(request).await,
        }
    }

    async fn pull(&mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (request, message) = read::<PullImageRequest>(request).await?;
        let asked = message.and_then(|message| {
            let image: Reference = message.image?.image.parse().ok()?;
            let auth = message.auth.unwrap_or_default();
            Some((auth::credentials(&auth, &image), image))
        });
        let Some((credentials, image)) = asked else {
            return self.pass(request).await;
        };
        let begun = credentials.map(|credentials| self.keychain.begin(&image, credentials));
        let mut pull = Pull {
            keychain: self.keychain.clone(),
            begun,
        };
        let answer = self.pass(request).await?;
        let (head, body) = answer.into_parts();
        let body = Whole::read(body).await?;
        let succeeded = is_ok(&head.headers) && body.trailers.as_ref().is_none_or(is_ok);
        let id = PullImageResponse::decode(frame(&body.bytes).unwrap_or_default());
        if let Ok(PullImageResponse { image_ref }) = id
            && succeeded
        {
            pull.begun = None;
            self.keychain.pulled(&image, &image_ref).await;
        }
        Ok(Response::from_parts(head, body.into_body()))
    }

    async fn remove(&mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (request, message) = read::<RemoveImageRequest>(request).await?;
        let answer = self.pass(request).await?;
        // Whether that succeeded does not matter: an image that is used is not removed by the kubelet.
        if let Some(image) = message.and_then(|message| message.image) {
            self.keychain.removed(&image.image).await;
        }
        Ok(answer)
    }

    async fn pass(&mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let mut request = Request::new(body);
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.headers_mut() = head.headers;
        let channel = self.channel.ready().await;
        let answer = match channel {
            Ok(channel) => channel.call(request).await,
            Err(error) => Err(error),
        };
        answer.map_err(|error| {
            let cause = crate::error::chain(&error);
            Status::unavailable(format!("image service at {}: {cause}", self.address))
        })
    }
}

/// A pull under way with credentials that are not known to be right. A kubelet that gives up drops it.
struct Pull {
    keychain: Keychain,
    begun: Option<Before>,
}

impl Drop for Pull {
    fn drop(&mut self) {
        if let Some(before) = self.begun.take() {
            self.keychain.failed(before);
        }
    }
}

impl Service<Request<Body>> for ImageService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut service = self.clone();
        Box::pin(async move {
            let answer = service.answer(request).await;
            Ok(answer.unwrap_or_else(Status::into_http))
        })
    }
}

impl NamedService for ImageService {
    const NAME: &'static str = NAME;
}

/// The request, to be passed on as it is, and its message if that can be read.
async fn read<M: Message + Default>(
    request: Request<Body>,
) -> Result<(Request<Body>, Option<M>), Status> {
    let (head, body) = request.into_parts();
    let body = Whole::read(body).await?;
    let message = frame(&body.bytes).and_then(|message| M::decode(message).ok());
    Ok((Request::from_parts(head, body.into_body()), message))
}

/// A body that was read to its end.
struct Whole {
    bytes: Bytes,
    trailers: Option<HeaderMap>,
}

impl Whole {
    async fn read(body: Body) -> Result<Self, Status> {
        let collected = Limited::new(body, MAX_MESSAGE).collect().await;
        let collected = collected.map_err(|error| match error.downcast::<Status>() {
            Ok(status) => *status,
            Err(error) => Status::resource_exhausted(error.to_string()),
        })?;
        Ok(Self {
            trailers: collected.trailers().cloned(),
            bytes: collected.to_bytes(),
        })
    }

    fn into_body(self) -> Body {
        let Self { bytes, trailers } = self;
        Body::new(Full::new(bytes).with_trailers(async { trailers.map(Ok) }))
    }
}

/// The first message of a body, unless it is compressed.
fn frame(body: &[u8]) -> Option<&[u8]> {
    let (head, rest) = body.split_at_checked(FRAME_HEAD)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    (head[0] == 0)
        .then(|| rest.get(..usize::try_from(length).ok()?))
        .flatten()
}

/// Whether headers or trailers tell of no failure.
fn is_ok(headers: &HeaderMap) -> bool {
    Status::from_header_map(headers).is_none_or(|status| status.code() == Code::Ok)
}

/// For [`crate::hostile`]: some body of a request.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(body: &[u8]) {
    let message = frame(body).unwrap_or(body);
    if let Ok(pull) = PullImageRequest::decode(message)
        && let Some(Ok(image)) = pull.image.map(|image| image.image.parse::<Reference>())
    {
        let _ = auth::credentials(&pull.auth.unwrap_or_default(), &image);
    }
    let _ = RemoveImageRequest::decode(message);
    let _ = PullImageResponse::decode(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_only_if_it_is_whole_and_not_compressed() {
        assert_eq!(frame(&[0, 0, 0, 0, 2, 7, 8, 9]), Some(&[7, 8][..]));
        assert_eq!(frame(&[0, 0, 0, 0, 0]), Some(&[][..]));
        for body in [
            &[][..],
            &[0, 0, 0],
            &[1, 0, 0, 0, 1, 7],
            &[0, 0, 0, 0, 2, 7],
            &[0, 255, 255, 255, 255, 7],
        ] {
            assert_eq!(frame(body), None, "{body:?}");
        }
    }
}
