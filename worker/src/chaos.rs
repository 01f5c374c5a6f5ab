//! A worker's faults on purpose, as a plan orders them ([`common::chaos`]). Refuses to decide when.

use crate::communicator::Communicator;
use common::chaos::{Deed, Injector, Plan, Point, VARIABLE};
use rustix::process::{Signal, getpid, kill_process};
use std::process::Command;
use std::time::Duration;
use storage::Store;
use storage::faulty::Faults;
use tch::{Tensor, no_grad};

/// What is done, and how many seconds it lasts.
pub type Struck = Option<(Deed, Option<f64>)>;

/// What this worker is to suffer. Clones share the faults of its store.
#[derive(Clone, Debug, Default)]
pub struct Ordeal {
    injector: Injector,
    store: Faults,
}

impl Ordeal {
    /// What the environment orders; nothing if that is no plan.
    #[must_use]
    pub fn ordered() -> Self {
        let Ok(text) = std::env::var(VARIABLE) else { return Self::default() };
        match serde_json::from_str::<Plan>(&text) {
            Ok(plan) => Self { injector: Injector::new(&plan), store: Faults::default() },
            Err(error) => {
                tracing::warn!("{VARIABLE} is no plan of faults: {error}");
                Self::default()
            }
        }
    }

    /// This worker's store, which is to suffer with it.
    #[must_use]
    pub fn of_store(&self, store: Store) -> Store {
        if self.injector.does(Deed::Store) { store.with_faults(&self.store) } else { store }
    }

    /// Takes part in a generation as `rank`; the run has taken `steps`.
    pub fn begin(&mut self, rank: u32, steps: u64) {
        self.injector.begin(rank, steps);
    }

    /// What is due at a point of the step after `steps`.
    pub fn due(&mut self, at: Point, steps: u64) -> Struck {
        self.injector.strike(at, steps)
    }

    /// Does it to this worker. `weights` are those in which a bit is turned.
    pub fn strike(&self, struck: Struck, communicator: &Communicator, weights: &[Tensor]) {
        if let Some((deed, lasts)) = struck {
            strike(deed, lasts, communicator, weights, &self.store);
        }
    }
}

fn strike(deed: Deed, lasts: Option<f64>, communicator: &Communicator, weights: &[Tensor], store: &Faults) {
    tracing::warn!("a fault on purpose: {deed:?}");
    let time = Duration::from_secs_f64(lasts.unwrap_or_default().clamp(0.0, 1e9));
    let signal = |signal| {
        if let Err(error) = kill_process(getpid(), signal) {
            tracing::error!("the fault could not be done: {error}");
        }
    };
    match deed {
        Deed::Kill => signal(Signal::KILL),
        Deed::Leave => signal(Signal::TERM),
        Deed::Stop => {
            if let Some(seconds) = lasts {
                let pid = std::process::id();
                let script = format!("sleep {seconds}; kill -CONT {pid}");
                // nobody waits for it: it ends by itself
                drop(Command::new("/bin/sh").args(["-c", &script]).spawn());
            }
            signal(Signal::STOP);
        }
        Deed::Hang => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        Deed::Slow => std::thread::sleep(time),
        Deed::Store => {
            store.strike();
            let store = store.clone();
            // nobody waits for it: it ends by itself
            std::thread::spawn(move || {
                std::thread::sleep(time);
                store.heal();
            });
        }
        Deed::Cut => communicator.aborter().abort(),
        // done to the gradient
        Deed::Nan => {}
        Deed::Flip => {
            if let Some(weight) = weights.first() {
                let first = weight.view([-1]).get(0);
                let value = first.double_value(&[]) as f32;
                no_grad(|| {
                    let _same = first.shallow_clone().fill_(f64::from(f32::from_bits(value.to_bits() ^ (1 << 20))));
                });
            }
        }
    }
}
