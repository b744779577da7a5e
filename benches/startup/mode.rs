//! The ways to start a container that are compared.

use crate::images::Form;

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// containerd's own pull and overlayfs.
    Overlayfs,
    /// Ours, every layer pulled and unpacked.
    FullPull,
    /// Ours, lazily.
    Lazy,
    /// Ours, lazily, with what a recorded start read fetched first.
    Prefetch,
    /// Ours, lazily, and nothing that was not asked for: what a start needs.
    OnDemand,
    /// The same by zTOCs, without compact ones.
    Ztocs,
    /// The original's daemon in place of ours, lazily.
    Original,
    /// The original as Debian's unstable suite has it, version 0.4.
    Soci04,
    /// The stargz snapshotter, on an image converted to eStargz.
    Stargz,
    /// The nydus snapshotter, on an image converted to its own format (RAFS v6).
    Nydus,
    /// The same, on metadata that refers to the layers as they were made.
    NydusZran,
    /// A second start with ours, everything local that the first one read, page cache dropped.
    Warm,
}

impl Mode {
    /// All of them, as tables order them.
    pub(crate) const ALL: [Self; 12] = [
        Self::Overlayfs,
        Self::FullPull,
        Self::Lazy,
        Self::Prefetch,
        Self::OnDemand,
        Self::Ztocs,
        Self::Original,
        Self::Soci04,
        Self::Stargz,
        Self::Nydus,
        Self::NydusZran,
        Self::Warm,
    ];

    /// A word for tables and the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::FullPull => "full-pull",
            Self::Lazy => "lazy",
            Self::Prefetch => "lazy+prefetch",
            Self::OnDemand => "on-demand",
            Self::Ztocs => "ztocs",
            Self::Original => "original",
            Self::Soci04 => "soci-0.4",
            Self::Stargz => "stargz",
            Self::Nydus => "nydus",
            Self::NydusZran => "nydus-zran",
            Self::Warm => "warm",
        }
    }

    /// The mode of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Whose first start is measured; [`Self::Warm`] is the second start of [`Self::Lazy`].
    pub(crate) fn is_first_start(self) -> bool {
        self != Self::Warm
    }

    /// Whether a container starts before its image is there.
    pub(crate) fn is_lazy(self) -> bool {
        !matches!(self, Self::Overlayfs | Self::FullPull)
    }

    /// The snapshotter as containerd knows it. Whatever is behind the proxy plugin, it has one name.
    pub(crate) fn snapshotter(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            _ => "soci",
        }
    }

    /// What of an image this mode pulls.
    pub(crate) fn form(self) -> Form {
        match self {
            Self::Soci04 => Form::Soci04,
            Self::Stargz => Form::Estargz,
            Self::Nydus => Form::Nydus,
            Self::NydusZran => Form::NydusZran,
            _ => Form::Indexed,
        }
    }

    /// What our daemon is told, or the original's.
    pub(crate) fn configuration(self) -> &'static str {
        match self {
            Self::Prefetch => "[prefetch]\nenable = true\n",
            Self::OnDemand => "[background_fetch]\ndisable = true\n",
            Self::Ztocs => {
                "[background_fetch]\ndisable = true\n[pull_modes.compact]\nenable = false\n"
            }
            Self::FullPull => {
                "[pull_modes.soci_v2]\nenable = false\n[pull_modes.parallel_pull_unpack]\nenable = true\n\
                 max_concurrent_downloads_per_image = 8\nmax_concurrent_unpacks_per_image = 4\n\
                 concurrent_download_chunk_size = \"8mb\"\ndiscard_unpacked_layers = true\n"
            }
            _ => "",
        }
    }
}
