//! A worker's faults on purpose, as a plan orders them ([`common::chaos`]). Refuses to decide when.

use crate::communicator::Communicator;
use common::chaos::{Deed, Injector, Plan, VARIABLE};
use rustix::process::{Signal, getpid, kill_process};
use std::process::Command;
use std::time::Duration;
use storage::faulty::Faults;
use tch::{Tensor, no_grad};

/// What is done, and how many seconds it lasts.
pub type Struck = Option<(Deed, Option<f64>)>;

/// The faults that the environment orders.
#[must_use]
pub fn injector() -> Injector {
    let Ok(text) = std::env::var(VARIABLE) else { return Injector::default() };
    match serde_json::from_str::<Plan>(&text) {
        Ok(plan) => Injector::new(&plan),
        Err(error) => {
            tracing::warn!("{VARIABLE} is no plan of faults: {error}");
            Injector::default()
        }
    }
}

/// Does it to this worker. `weights` are those in which a bit is turned, `store` is what its store suffers.
pub fn strike(deed: Deed, lasts: Option<f64>, communicator: &Communicator, weights: &[Tensor], store: &Faults) {
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
