//! Images for the next steps, fetched while the present one computes.
//!
//! One thread reads the prepared pyramid and mirrors; which images a step shows is a pure function of images seen, so the
//! thread needs only to be told which steps come. Nothing here decodes an image or knows a network.

use crate::trainer::Upcoming;
use common::seed::{Purpose, Stream};
use data::{DataError, Order, Pyramid};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Minibatches that are ready or in the making.
const AHEAD: usize = 2;

/// What one step shows: enough to read it.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    images: u64,
    resolution: u32,
    samples: std::ops::Range<u32>,
}

/// Why there are no images.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The prepared pyramid cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The reading thread ended; a defect.
    #[error("the reading thread ended without a word")]
    ReaderGone,
}

/// The reading thread.
pub struct Input {
    requests: SyncSender<Request>,
    answers: Receiver<Result<Vec<u8>, DataError>>,
    asked: VecDeque<Request>,
    waited: Duration,
}

impl Input {
    /// Starts reading from `pyramid` in the order that `seed` gives; `mirror` flips each image with probability one half.
    #[must_use]
    pub fn new(pyramid: Arc<Pyramid>, seed: u64, mirror: bool) -> Self {
        let (requests, inbox) = sync_channel::<Request>(AHEAD);
        let (outbox, answers) = sync_channel(AHEAD);
        std::thread::spawn(move || {
            let mut order = Order::new(seed, pyramid.count());
            for request in inbox {
                let images = read(&pyramid, &mut order, seed, mirror, &request);
                if outbox.send(images).is_err() {
                    break;
                }
            }
        });
        Self { requests, answers, asked: VecDeque::new(), waited: Duration::ZERO }
    }

    /// The images of `upcoming[0]` if it shows any, `[n, 3, r, r]` bytes; those of the later steps are fetched meanwhile.
    ///
    /// # Errors
    /// When the pyramid cannot be read.
    pub fn next(&mut self, upcoming: &[Upcoming]) -> Result<Option<Tensor>, InputError> {
        let wanted: Vec<Request> = (upcoming.iter().filter(|u| u.shows_images))
            .map(|u| Request { images: u.images, resolution: u.stage.level.resolution, samples: u.samples.clone() })
            .take(AHEAD)
            .collect();
        while self.asked.front().is_some_and(|front| wanted.first() != Some(front)) {
            self.receive()?; // asked for before the run was put elsewhere
        }
        for request in wanted.iter().skip(self.asked.len()) {
            self.requests.send(request.clone()).map_err(|_| InputError::ReaderGone)?;
            self.asked.push_back(request.clone());
        }
        let Some(first) = upcoming.first().filter(|u| u.shows_images) else { return Ok(None) };
        let began = Instant::now();
        let bytes = self.receive()?;
        self.waited += began.elapsed();
        let side = i64::from(first.stage.level.resolution);
        Ok(Some(Tensor::from_data_size(&bytes, &[first.samples.len() as i64, 3, side, side], Kind::Uint8)))
    }

    /// The answer to the oldest request.
    fn receive(&mut self) -> Result<Vec<u8>, InputError> {
        self.asked.pop_front();
        Ok(self.answers.recv().map_err(|_| InputError::ReaderGone)??)
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

fn read(
    pyramid: &Pyramid,
    order: &mut Order,
    seed: u64,
    mirror: bool,
    request: &Request,
) -> Result<Vec<u8>, DataError> {
    let side = request.resolution as usize;
    let image = 3 * side * side;
    let indices: Vec<u32> = request.samples.clone().map(|s| order.index_at(request.images + u64::from(s))).collect();
    let mut bytes = vec![0u8; indices.len() * image];
    pyramid.read_batch(request.resolution, &indices, &mut bytes)?;
    if mirror {
        for (sample, pixels) in request.samples.clone().zip(bytes.chunks_exact_mut(image)) {
            if Stream::new(seed, Purpose::Mirror, request.images, u64::from(sample)).coin() {
                pixels.chunks_exact_mut(side).for_each(<[u8]>::reverse);
            }
        }
    }
    Ok(bytes)
}
