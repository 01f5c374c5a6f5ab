//! Images for the next steps, fetched while the present one computes.
//!
//! One thread reads; which images a step shows is a pure function of images seen ([`crate::images`]), so the thread needs only
//! to be told which steps come.

use crate::images::{Images, Request};
use crate::trainer::Upcoming;
use data::DataError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Minibatches that are ready or in the making.
const AHEAD: usize = 2;

/// Why there are no images.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The prepared images cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The reading thread ended; a defect.
    #[error("the reading thread ended without a word")]
    ReaderGone,
}

/// The reading thread.
pub struct Input {
    requests: SyncSender<Request>,
    answers: Receiver<Result<Vec<Vec<u8>>, DataError>>,
    asked: VecDeque<Request>,
    /// The last answer: a step may show what the step before it showed.
    shown: Option<(Request, Vec<Tensor>)>,
    waited: Duration,
}

impl Input {
    /// Starts reading from `images`.
    #[must_use]
    pub fn new(images: Arc<Images>) -> Self {
        let (requests, inbox) = sync_channel::<Request>(AHEAD);
        let (outbox, answers) = sync_channel(AHEAD);
        std::thread::spawn(move || {
            let mut order = images.order();
            for request in inbox {
                if outbox.send(images.read(&mut order, &request)).is_err() {
                    break;
                }
            }
        });
        Self { requests, answers, asked: VecDeque::new(), shown: None, waited: Duration::ZERO }
    }

    /// The images of `upcoming[0]` if it reads any, `[n, 3, r, r]` bytes for each domain; those of the later steps are fetched
    /// meanwhile.
    ///
    /// # Errors
    /// When the images cannot be read.
    pub fn next(&mut self, upcoming: &[Upcoming]) -> Result<Vec<Tensor>, InputError> {
        let mut wanted: Vec<Request> = (upcoming.iter().filter(|u| u.reads_images))
            .map(|u| Request { images: u.images, resolution: u.stage.level.resolution, samples: u.samples.clone() })
            .collect();
        wanted.dedup();
        let shown = self.shown.as_ref().is_some_and(|(request, _)| wanted.first() == Some(request));
        if shown {
            wanted.remove(0);
        }
        wanted.truncate(AHEAD);
        while self.asked.front().is_some_and(|front| wanted.first() != Some(front)) {
            self.receive()?; // asked for before the run was put elsewhere
        }
        for request in wanted.iter().skip(self.asked.len()) {
            self.requests.send(request.clone()).map_err(|_| InputError::ReaderGone)?;
            self.asked.push_back(request.clone());
        }
        if !upcoming.first().is_some_and(|u| u.reads_images) {
            return Ok(Vec::new());
        }
        if !shown {
            let began = Instant::now();
            let (request, domains) = self.receive()?;
            self.waited += began.elapsed();
            let side = i64::from(request.resolution);
            let shape = [request.samples.len() as i64, 3, side, side];
            let tensors = domains.iter().map(|bytes| Tensor::from_data_size(bytes, &shape, Kind::Uint8)).collect();
            self.shown = Some((request, tensors));
        }
        let (_, tensors) = self.shown.as_ref().ok_or(InputError::ReaderGone)?;
        Ok(tensors.iter().map(Tensor::shallow_clone).collect())
    }

    /// The oldest request and its answer.
    fn receive(&mut self) -> Result<(Request, Vec<Vec<u8>>), InputError> {
        let request = self.asked.pop_front().ok_or(InputError::ReaderGone)?;
        Ok((request, self.answers.recv().map_err(|_| InputError::ReaderGone)??))
    }

    /// Time that training waited for images since the last call of [`Input::take_waited`].
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The same, and it starts anew.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}
