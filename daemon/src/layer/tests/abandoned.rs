//! Readers that are killed while they wait.

use std::process::{Child, Command, Stdio};

use fuse::Reader;

use super::*;

/// A process that lives until it is told to end.
fn process() -> Child {
    Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
}

fn end(mut process: Child) {
    process.kill().unwrap();
    process.wait().unwrap();
}

fn ask_as(reader: &Child, layer: &Layer, range: Range<u64>) -> Answer {
    let (reply, receive) = reply();
    layer.read(
        UncompressedOffset(range.start)..UncompressedOffset(range.end),
        reply.wanted_by(Reader::new(reader.id())),
    );
    receive
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_whose_readers_were_all_killed_is_given_up_and_the_next_reader_is_served() {
    let node = Node::new().await;
    node.source.will([Some(Fault::Stall)]);
    let (one, other) = (process(), process());
    let first = ask_as(&one, &node.layer, 0..10);
    let second = ask_as(&other, &node.layer, 5..20);
    end(one);
    assert_eq!(first.await.unwrap(), Err(ReadError::Interrupted));
    assert!(
        !node.layer.flights.is_quiet(),
        "somebody waits for it still"
    );
    end(other);
    assert_eq!(second.await.unwrap(), Err(ReadError::Interrupted));
    quiet(&node.layer).await;
    assert_eq!(node.layer.counters().failed_reads, 0, "nobody was there");
    node.assert_right(0..20).await;
    assert_eq!(node.source.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lives_gets_what_was_asked_for_by_somebody_who_was_killed() {
    let node = Node::new().await;
    node.source.slow(Duration::from_millis(1500));
    let (killed, alive) = (process(), process());
    let first = ask_as(&killed, &node.layer, 0..10);
    let second = ask_as(&alive, &node.layer, 5..20);
    end(killed);
    assert_eq!(first.await.unwrap(), Err(ReadError::Interrupted));
    assert_eq!(second.await.unwrap(), node.expected(5..20));
    assert_eq!(node.source.requests().len(), 1);
    end(alive);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_a_fetch_that_is_being_given_up_has_it_begun_again() {
    let node = Node::new().await;
    let ticket = Arc::new(Ticket::new(Lane::Demand));
    let span = SpanId(0);
    assert!(matches!(
        node.layer.flights.join(span, None, &ticket),
        Joined::Started(_)
    ));
    let landing = Landing::new(&node.layer, span);
    ticket.withdraw();
    let late = ask(&node.layer, 3..9);
    drop(landing);
    assert_eq!(late.await.unwrap(), node.expected(3..9));
}
