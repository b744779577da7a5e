//! Random histories against plain extraction.

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Read { start: u64, len: u64 },
    Burst { start: u64, readers: u64 },
    Faults(Vec<Option<Fault>>),
    Ahead { first: u32, spans: u32 },
    Flip { file: &'static str, position: u64 },
    Evict { span: u32, spans: u32 },
    FillUp,
    Restart,
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    prop_oneof![
        Just(None),
        Just(Some(Fault::Short)),
        Just(Some(Fault::Corrupt)),
        Just(Some(Fault::Fail)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let file = prop_oneof![Just("data"), Just("map")];
    prop_oneof![
        6 => (any::<u64>(), 0..600_000_u64).prop_map(|(start, len)| Step::Read { start, len }),
        2 => (any::<u64>(), 1..9_u64).prop_map(|(start, readers)| Step::Burst { start, readers }),
        2 => prop::collection::vec(fault(), 1..4).prop_map(Step::Faults),
        1 => (0..16_u32, 0..6_u32).prop_map(|(first, spans)| Step::Ahead { first, spans }),
        1 => (file, any::<u64>()).prop_map(|(file, position)| Step::Flip { file, position }),
        2 => (0..16_u32, 1..9_u32).prop_map(|(span, spans)| Step::Evict { span, spans }),
        1 => Just(Step::FillUp),
        1 => Just(Step::Restart),
    ]
}

/// Right bytes; or, if faults were scripted, a failure that does not last.
async fn check(node: &Node, range: Range<u64>, scripted: bool) {
    let expected = node.expected(range.clone());
    let answer = node.read(range.clone()).await;
    if answer == expected {
        return;
    }
    let excused = scripted && answer == Err(ReadError::Unavailable);
    assert!(
        excused,
        "wrong bytes or an unexplained failure for {range:?}"
    );
    node.source.faults.lock().clear();
    // A fetch that others began before may yet fail, and this read with it.
    for _ in 0..3 {
        if node.read(range.clone()).await == expected {
            return;
        }
    }
    panic!("a failure has become permanent for {range:?}");
}

async fn apply(node: Node, step: Step, scripted: bool) -> Node {
    let all = node.all().end;
    match step {
        Step::Read { start, len } => {
            let start = start % all;
            check(&node, start..(start + len).min(all), scripted).await;
        }
        Step::Burst { start, readers } => {
            let at = |reader: u64| (start % all + reader * 300_000) % (all - 10);
            let reads =
                (0..readers).map(|reader| check(&node, at(reader)..at(reader) + 10, scripted));
            futures::future::join_all(reads).await;
        }
        Step::Faults(faults) => node.source.will(faults),
        Step::Ahead { first, spans } => {
            node.layer
                .request(SpanId(first)..SpanId(first + spans), Lane::Readahead);
        }
        Step::Evict { span, spans } => {
            for id in span..(span + spans).min(node.layer.spans().count()) {
                node.layer.evict(SpanId(id));
            }
        }
        Step::FillUp => node.layer.fill_up(),
        Step::Flip { file, position } => {
            // What was verified since the start is trusted: damage comes with a restart.
            let node = node.restart().await;
            let size = node.file(file).metadata().unwrap().len();
            node.flip(file, position % size);
            return node.restart().await;
        }
        Step::Restart => return node.restart().await,
    }
    node
}

async fn walk(steps: Vec<Step>, packed: Packed) {
    let options = LayerOptions {
        readahead: true,
        verification_retries: 1,
        cache_limit: Some(2 << 20),
        ..options()
    };
    let mut node = Node::with(packed, options).await;
    let mut scripted = false;
    for step in steps {
        // Until the next restart: what was begun under a fault may end under it much later.
        scripted = match &step {
            Step::Faults(_) => true,
            Step::Restart | Step::Flip { .. } => false,
            _ => scripted,
        };
        node = apply(node, step, scripted).await;
    }
    node.source.faults.lock().clear();
    check(&node, node.all(), scripted).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_read_gives_the_right_bytes_or_fails_for_now(
        steps in prop::collection::vec(step(), 1..40),
        kind in 0..3_usize,
    ) {
        let (compression, members) = [
            (Compression::Gzip, 1), (Compression::Gzip, 4), (Compression::Uncompressed, 1),
        ][kind];
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(walk(steps, packed(compression, members)));
    }
}
