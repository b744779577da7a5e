//! How a layer is provided: the decision table of `Prepare`, without any effect.

use super::images::{LayerRequest, NotLazy, Prepared};
use super::labels::{self, Mark};
use super::record::Labels;

/// What a `Prepare` asks for.
#[derive(Debug)]
pub enum Wanted {
    /// A writable layer for a container, or anything else that is no image layer.
    Container,
    /// An image layer that is to be committed as `target`.
    Layer {
        /// The chain ID.
        target: String,
        /// What is known of it, or why that is not enough.
        request: Result<Box<LayerRequest>, NotLazy>,
    },
}

impl Wanted {
    /// Reads the labels of a `Prepare`: `containerd.io/snapshot.ref` makes it an image layer.
    pub fn of(labels: &Labels, namespace: &str) -> Self {
        match labels.get(labels::REF).filter(|target| !target.is_empty()) {
            None => Self::Container,
            Some(target) => Self::Layer {
                target: target.clone(),
                request: labels::parse(labels, namespace).map(Box::new),
            },
        }
    }
}

/// What is to be done with a layer once it was tried.
#[derive(Debug)]
pub enum Verdict {
    /// Commit it and tell containerd that it exists.
    Commit {
        /// How it is marked.
        mark: Mark,
        /// Why it is not lazy, if it is not.
        reason: Option<NotLazy>,
    },
    /// Give containerd mounts, so that it fetches and unpacks the layer by itself.
    Defer {
        /// Why.
        reason: NotLazy,
    },
}

impl Verdict {
    /// The verdict on how a layer came out.
    pub fn on(prepared: Prepared) -> Self {
        match prepared {
            Prepared::Lazy => Self::Commit {
                mark: Mark::Lazy,
                reason: None,
            },
            Prepared::Unpacked { reason } => Self::Commit {
                mark: Mark::Unpacked {
                    indexed: !matches!(reason, NotLazy::NoIndex | NotLazy::Disabled),
                },
                reason: Some(reason),
            },
            Prepared::Deferred { reason } => Self::Defer { reason },
        }
    }

    /// The field that log readers look for.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Commit {
                mark: Mark::Lazy, ..
            } => Outcome::Lazy,
            Self::Commit { .. } => Outcome::Unpacked,
            Self::Defer { .. } => Outcome::Deferred,
        }
    }

    /// Why the layer is not lazy.
    pub fn reason(&self) -> Option<&NotLazy> {
        match self {
            Self::Commit { reason, .. } => reason.as_ref(),
            Self::Defer { reason } => Some(reason),
        }
    }
}

/// How a layer was provided, for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Span by span.
    Lazy,
    /// Whole, by us.
    Unpacked,
    /// By containerd.
    Deferred,
    /// It was there.
    Known,
}

impl Outcome {
    /// A short stable word for metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Unpacked => "unpacked",
            Self::Deferred => "deferred",
            Self::Known => "known",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decision_table_holds() {
        use NotLazy::{Disabled, NoIndex, NoZtoc, TooSmall};
        let artifact = || NotLazy::Artifact {
            detail: "digest mismatch".to_owned(),
        };
        let unpacked = |reason| Prepared::Unpacked { reason };
        let deferred = |reason| Prepared::Deferred { reason };
        let indexed = Some(Mark::Unpacked { indexed: true });
        let plain = Some(Mark::Unpacked { indexed: false });
        // How it came out; how it is marked if it is committed; why it is not lazy.
        let table = [
            (Prepared::Lazy, Some(Mark::Lazy), None),
            (unpacked(NoZtoc), indexed, Some("no_ztoc")),
            (unpacked(TooSmall), indexed, Some("too_small")),
            (unpacked(artifact()), indexed, Some("artifact")),
            (unpacked(NoIndex), plain, Some("no_index")),
            (unpacked(Disabled), plain, Some("disabled")),
            (deferred(NoIndex), None, Some("no_index")),
            (deferred(NoZtoc), None, Some("no_ztoc")),
            (deferred(artifact()), None, Some("artifact")),
            (deferred(Disabled), None, Some("disabled")),
        ];
        for (prepared, marked, reason) in table {
            let name = format!("{prepared:?}");
            let verdict = Verdict::on(prepared);
            let outcome = match marked {
                Some(Mark::Lazy) => Outcome::Lazy,
                Some(Mark::Unpacked { .. }) => Outcome::Unpacked,
                None => Outcome::Deferred,
            };
            assert_eq!(verdict.outcome(), outcome, "{name}");
            assert_eq!(verdict.reason().map(NotLazy::label), reason, "{name}");
            let mark = match verdict {
                Verdict::Commit { mark, .. } => Some(mark),
                Verdict::Defer { .. } => None,
            };
            assert_eq!(mark, marked, "{name}");
        }
    }

    #[test]
    fn a_reference_label_makes_it_an_image_layer() {
        let labelled = |target: &str| {
            let labels = [(labels::REF.to_owned(), target.to_owned())].into();
            Wanted::of(&labels, "default")
        };
        assert!(matches!(
            Wanted::of(&Labels::new(), "default"),
            Wanted::Container
        ));
        assert!(matches!(labelled(""), Wanted::Container));
        assert!(matches!(
            labelled("sha256:c"),
            Wanted::Layer { target, request: Err(NotLazy::Labels { .. }) } if target == "sha256:c"
        ));
    }
}
