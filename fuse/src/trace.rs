//! What a trace says of a read. Without somebody who wants traces no span is made.

use std::sync::Arc;

use fuser::INodeNo;
use tracing::Span;
use tracing::field::Empty;

use crate::merge::View;

/// The target of all spans that belong to a trace, and of nothing else.
pub const TRACE: &str = "spanshot::trace";
/// The name of the span of a read.
pub const READ: &str = "read";
/// The attribute of a read that only one that waited has.
pub const READ_PATH: &str = "file.path";

/// The span of a read that is under way.
#[derive(Debug)]
pub(crate) struct ReadTrace {
    span: Span,
    /// For the name, if anybody wants it.
    of: Option<(Arc<View>, INodeNo)>,
}

impl ReadTrace {
    /// To be begun when the request comes.
    pub(crate) fn begin(view: &Arc<View>, ino: INodeNo, offset: u64, size: u32) -> Self {
        let span = tracing::info_span!(
            target: TRACE, parent: None, READ,
            otel.kind = "server", file.path = Empty, file.offset = offset, file.length = size, failed = Empty,
        );
        let of = (!span.is_disabled()).then(|| (Arc::clone(view), ino));
        Self { span, of }
    }

    /// The span, for what is done on this thread.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The read has been answered, after a wait or at once.
    pub(crate) fn ended(self, waited: bool, failed: bool) {
        let Some((view, ino)) = self.of.filter(|_| waited) else {
            return;
        };
        let path = view.path_for_log(ino, b"");
        self.span
            .record(READ_PATH, tracing::field::display(path.escape_ascii()));
        if failed {
            self.span.record("failed", true);
        }
    }
}
