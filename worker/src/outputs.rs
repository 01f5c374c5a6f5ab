//! Files that a run leaves beside its checkpoints: sample grids. Stored behind training; a failure is a warning.

use bytes::Bytes;
use data::{save_grid, upscale_nearest};
use std::sync::Arc;
use std::time::Duration;
use storage::{Content, Run};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// At the end, files in flight are waited for this long.
const LAST: Duration = Duration::from_secs(60);

/// Writes files of one run from rank 0; the other ranks write nothing.
pub struct Outputs {
    runtime: Arc<Runtime>,
    run: Run,
    writes: bool,
    in_flight: Vec<JoinHandle<()>>,
}

impl Outputs {
    /// For `run`; only where `writes` does anything happen.
    #[must_use]
    pub fn new(runtime: Arc<Runtime>, run: Run, writes: bool) -> Self {
        Self { runtime, run, writes, in_flight: Vec::new() }
    }

    /// Stores `images` (CHW bytes of side `resolution`) as a grid in which each is shown at side `shown`.
    pub fn grid(&mut self, name: String, images: Vec<u8>, resolution: u32, shown: u32, shape: (u32, u32)) {
        if !self.writes {
            return;
        }
        self.in_flight.retain(|task| !task.is_finished());
        let run = self.run.clone();
        self.in_flight.push(self.runtime.spawn(async move {
            let encoded = tokio::task::spawn_blocking(move || {
                let shown_images = upscale_nearest(&images, resolution, shown)?;
                save_grid(&shown_images, shown, shape.0, shape.1)
            });
            let png = match encoded.await {
                Ok(Ok(png)) => png,
                Ok(Err(error)) => return tracing::warn!("{name} could not be drawn: {error}"),
                Err(error) => return tracing::warn!("{name} could not be drawn: {error}"),
            };
            if let Err(error) = run.put_file(&name, Bytes::from(png), Content::Png).await {
                tracing::warn!("{name} could not be stored: {error}");
            }
        }));
    }

    /// Waits until everything is stored, within a deadline.
    pub fn finish(&mut self) {
        let tasks = std::mem::take(&mut self.in_flight);
        let all = async {
            for task in tasks {
                let _panicked = task.await;
            }
        };
        if self.runtime.block_on(async { tokio::time::timeout(LAST, all).await }).is_err() {
            tracing::warn!("sample grids were not stored within {} s", LAST.as_secs());
        }
    }
}
