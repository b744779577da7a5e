//! Lower directories of a chain, views mounted only once they are asked for.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OnceCell;

use super::images::{Images, MountError, MountedView};
use super::mounts::Lower;

/// The lower directories of one snapshot, nearest first.
///
/// Mounting the views of lazy layers costs; most layers are prepared without a look at those below.
pub struct LowerDirs {
    lowers: Vec<Lower>,
    images: Option<Arc<dyn Images>>,
    mounted: OnceCell<Mounted>,
}

/// Lower directories that are there, and what keeps them there.
#[derive(Debug, Default, Clone)]
pub struct Mounted {
    /// Nearest first.
    pub paths: Vec<PathBuf>,
    /// The views among them, in no order.
    pub views: Vec<Arc<dyn MountedView>>,
}

impl LowerDirs {
    /// The lowers of a chain, nearest first; `images` mounts the views.
    pub fn new(lowers: Vec<Lower>, images: Arc<dyn Images>) -> Self {
        Self {
            lowers,
            images: Some(images),
            mounted: OnceCell::new(),
        }
    }

    /// Plain directories, nearest first.
    pub fn plain(paths: Vec<PathBuf>) -> Self {
        let mounted = Mounted {
            paths,
            views: Vec::new(),
        };
        Self {
            lowers: Vec::new(),
            images: None,
            mounted: OnceCell::new_with(Some(mounted)),
        }
    }

    /// Whether there is nothing below. Mounts nothing.
    pub fn is_empty(&self) -> bool {
        let mounted = self.mounted.get();
        self.lowers.is_empty() && mounted.is_none_or(|mounted| mounted.paths.is_empty())
    }

    /// The paths, nearest first, valid as long as `self` is. Mounts what is not mounted yet.
    ///
    /// # Errors
    /// A view cannot be mounted.
    pub async fn paths(&self) -> Result<&[PathBuf], MountError> {
        self.mounted().await.map(|mounted| mounted.paths.as_slice())
    }

    /// The paths with what keeps them there. Mounts what is not mounted yet.
    ///
    /// # Errors
    /// A view cannot be mounted.
    pub async fn mounted(&self) -> Result<&Mounted, MountError> {
        self.mounted.get_or_try_init(|| self.mount()).await
    }

    async fn mount(&self) -> Result<Mounted, MountError> {
        let mut mounted = Mounted::default();
        // From the bottom up: a view takes the attributes of directories it only implies from
        // what lies below it.
        for lower in self.lowers.iter().rev() {
            match (lower, &self.images) {
                (Lower::Directory(path), _) => mounted.paths.insert(0, path.clone()),
                (Lower::View(run), Some(images)) => {
                    let view = images.mount(run, &mounted.paths).await?;
                    mounted.paths.insert(0, view.path().to_owned());
                    mounted.views.push(view);
                }
                // Only plain directories come without someone to mount views.
                (Lower::View(_), None) => {}
            }
        }
        Ok(mounted)
    }
}

impl std::fmt::Debug for LowerDirs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LowerDirs").field(&self.lowers).finish()
    }
}
