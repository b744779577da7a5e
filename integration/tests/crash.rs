//! The daemon is killed, upgraded, or the machine reboots.
#![allow(clippy::unwrap_used)]

use integration::soak::{Plan, run};

#[test]
fn containers_do_not_notice_that_the_daemon_is_killed_again_and_again() {
    let plan = Plan {
        kills: 12,
        views: 20,
        containers: 3,
        reader: env!("CARGO_BIN_EXE_soak").into(),
        seed: 7,
    };
    let outcome = run(&plan, |_| {}).unwrap();
    println!("{outcome:?}");
    assert_eq!((outcome.failed, outcome.wrong), (0, 0), "{outcome:?}");
    assert_eq!(outcome.kills, 12);
    // Every view was read between any two kills.
    assert!(outcome.reads > 12 * 20, "{outcome:?}");
    assert!(outcome.restart_ms(50) < 500, "{outcome:?}");
}
