//! Images: names that point at content.

use std::collections::{BTreeMap, HashMap};

use proto::containerd::services::images::v1 as api;
use proto::containerd::services::images::v1::images_client::ImagesClient;
use proto::containerd::types;
use ztoc::index::Descriptor;

use super::{Containerd, ContainerdError, optional};

/// An image record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Full name, such as `docker.io/library/alpine:latest`.
    pub name: String,
    /// The manifest or image index.
    pub target: Descriptor,
    /// Labels; the garbage collector follows those of `containerd.io/gc.ref.`.
    pub labels: BTreeMap<String, String>,
}

impl Containerd {
    /// The image of that name.
    pub async fn image(&self, name: &str) -> Result<Option<Image>, ContainerdError> {
        let request = self.request(api::GetImageRequest {
            name: name.to_owned(),
        });
        let answer = optional(ImagesClient::new(self.channel.clone()).get(request).await)
            .map_err(self.failed(format!("look up image {name}")))?;
        answer
            .and_then(|answer| answer.into_inner().image)
            .map(|image| self.read_image(image))
            .transpose()
    }

    /// All images of the namespace.
    pub async fn images(&self) -> Result<Vec<Image>, ContainerdError> {
        let request = self.request(api::ListImagesRequest {
            filters: Vec::new(),
        });
        let answer = ImagesClient::new(self.channel.clone())
            .max_decoding_message_size(super::MAX_MESSAGE_SIZE)
            .list(request)
            .await
            .map_err(self.failed("list images"))?;
        // An image of a kind we cannot read (its digest is no sha256) is no reason to hide others.
        Ok(answer
            .into_inner()
            .images
            .into_iter()
            .filter_map(|image| self.read_image(image).ok())
            .collect())
    }

    /// Creates the image, or points the existing one at `target` and adds `labels`.
    pub async fn put_image(&self, image: &Image) -> Result<(), ContainerdError> {
        let request = self.request(api::CreateImageRequest {
            image: Some(write_image(image)),
            source_date_epoch: None,
        });
        let created = ImagesClient::new(self.channel.clone())
            .create(request)
            .await;
        match created.map_err(self.failed(format!("create image {}", image.name))) {
            Err(error) if error.is_already_exists() => {
                let paths = std::iter::once("target".to_owned()).chain(label_paths(&image.labels));
                self.update_image(image, paths.collect()).await
            }
            other => other.map(|_| ()),
        }
    }

    /// Sets `labels` of the image `name`, leaving its other labels.
    pub async fn label_image(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let paths = label_paths(&labels).collect();
        let mut image = self
            .image(name)
            .await?
            .ok_or_else(|| self.malformed(format!("label image {name}"), "no such image"))?;
        image.labels = labels;
        self.update_image(&image, paths).await
    }

    async fn update_image(&self, image: &Image, paths: Vec<String>) -> Result<(), ContainerdError> {
        let request = self.request(api::UpdateImageRequest {
            image: Some(write_image(image)),
            update_mask: Some(prost_types::FieldMask { paths }),
            source_date_epoch: None,
        });
        ImagesClient::new(self.channel.clone())
            .update(request)
            .await
            .map_err(self.failed(format!("update image {}", image.name)))?;
        Ok(())
    }

    fn read_image(&self, image: api::Image) -> Result<Image, ContainerdError> {
        let target = image.target.unwrap_or_default();
        let action = || format!("look up image {}", image.name);
        let digest = target
            .digest
            .parse()
            .map_err(|error| self.malformed(action(), format!("{error}")))?;
        let size = u64::try_from(target.size)
            .map_err(|_| self.malformed(action(), format!("size {}", target.size)))?;
        let mut descriptor = Descriptor::new(target.media_type, digest, size);
        descriptor.annotations = target.annotations.into_iter().collect();
        Ok(Image {
            name: image.name,
            target: descriptor,
            labels: image.labels.into_iter().collect(),
        })
    }
}

fn label_paths(labels: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    labels.keys().map(|key| format!("labels.{key}"))
}

fn write_image(image: &Image) -> api::Image {
    api::Image {
        name: image.name.clone(),
        labels: image.labels.clone().into_iter().collect::<HashMap<_, _>>(),
        target: Some(write_descriptor(&image.target)),
        created_at: None,
        updated_at: None,
    }
}

pub(super) fn write_descriptor(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone().into_iter().collect(),
    }
}
