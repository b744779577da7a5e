//! Sharing of views on threads that are interleaved in many ways: nobody holds a view that is being unmounted,
//! each view is unmounted once, and none is left.
#![allow(clippy::unwrap_used)]
// The daemon uses more of it than the model.
#![allow(dead_code, unreachable_pub)]

use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread;

use self::share::Shares;

#[path = "../src/view/share.rs"]
mod share;

/// Locks and counts that the model watches.
mod sync {
    pub(crate) use shuttle::sync::{Arc, Weak};

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> shuttle::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

/// Orders tried of each model.
const ORDERS: usize = 3000;

/// What is mounted.
#[derive(Debug, Default)]
struct Kernel {
    mounted: AtomicUsize,
    unmounted: AtomicUsize,
}

/// A mounted view; unmounted when it is dropped.
#[derive(Debug)]
struct Mounted {
    kernel: Arc<Kernel>,
    alive: AtomicUsize,
}

impl Mounted {
    fn new(kernel: &Arc<Kernel>) -> Self {
        kernel.mounted.fetch_add(1, Ordering::SeqCst);
        Self {
            kernel: Arc::clone(kernel),
            alive: AtomicUsize::new(1),
        }
    }

    fn read(&self) {
        thread::yield_now();
        assert_eq!(self.alive.load(Ordering::SeqCst), 1, "it is mounted");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        assert_eq!(self.alive.swap(0, Ordering::SeqCst), 1);
        thread::yield_now();
        self.kernel.unmounted.fetch_add(1, Ordering::SeqCst);
    }
}

struct World {
    shares: Shares<u8, Mounted>,
    /// As single flight has it: one mounts at a time.
    mounting: shuttle::sync::Mutex<()>,
    kernel: Arc<Kernel>,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            shares: Shares::new(),
            mounting: shuttle::sync::Mutex::new(()),
            kernel: Arc::default(),
        })
    }

    /// What preparing a snapshot does.
    fn mount(&self, key: u8) -> Arc<Mounted> {
        if let Some(mounted) = self.shares.find(&key) {
            return mounted;
        }
        let _mounting = self.mounting.lock().unwrap();
        if let Some(mounted) = self.shares.find(&key) {
            return mounted;
        }
        self.shares.publish(key, Mounted::new(&self.kernel))
    }

    /// A container that comes and goes.
    fn container(&self, key: u8) {
        let view = self.mount(key);
        view.read();
        let again = self.shares.find(&key);
        assert!(
            again.is_some_and(|again| Arc::ptr_eq(&again, &view)),
            "the same"
        );
        drop(view);
    }

    fn assert_nothing_is_left(&self) {
        assert!(self.shares.alive().is_empty());
        let mounted = self.kernel.mounted.load(Ordering::SeqCst);
        assert_eq!(self.kernel.unmounted.load(Ordering::SeqCst), mounted);
        assert!(mounted > 0);
    }
}

type Thread = Box<dyn FnOnce(&World) + Send>;

fn run(world: &Arc<World>, threads: Vec<Thread>) {
    let running: Vec<_> = threads
        .into_iter()
        .map(|work| {
            let world = Arc::clone(world);
            thread::spawn(move || work(&world))
        })
        .collect();
    for thread in running {
        thread.join().unwrap();
    }
}

#[test]
fn containers_that_come_and_go_share_a_view_that_goes_with_the_last() {
    let model = || {
        let world = World::new();
        run(
            &world,
            vec![
                Box::new(|it| it.container(1)),
                Box::new(|it| it.container(1)),
                Box::new(|it| {
                    it.container(2);
                    it.container(1);
                }),
            ],
        );
        world.assert_nothing_is_left();
    };
    shuttle::check_random(model, ORDERS);
    shuttle::check_pct(model, ORDERS, 3);
}

#[test]
fn adopted_views_stay_until_they_are_settled_and_then_only_for_who_holds_them() {
    let model = || {
        let world = World::new();
        let adopted = [1, 2].map(|key| world.shares.publish(key, Mounted::new(&world.kernel)));
        world.shares.adopt(adopted.into());
        let held = world.shares.find(&1).unwrap();
        let reader = Arc::clone(&held);
        run(
            &world,
            vec![
                Box::new(|it| {
                    assert!(it.shares.settle() <= 1, "the first is held");
                }),
                Box::new(|it| it.container(1)),
                Box::new(|it| it.container(2)),
                Box::new(move |_| reader.read()),
            ],
        );
        held.read();
        drop(held);
        world.assert_nothing_is_left();
    };
    shuttle::check_random(model, ORDERS);
    shuttle::check_pct(model, ORDERS, 3);
}
