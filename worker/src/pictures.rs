//! What people look at: grids of images, made by all ranks at the same step and stored by rank 0.
//!
//! | file | shows |
//! |---|---|
//! | `samples/reals.png` | the first training images in the run's order |
//! | `samples/fakes000160.png` | images of the same latents for the whole run, at 160 kimg |
//! | `samples/a2b000160.png` | rows of one image: real, translated; translated back, and as the way back leaves it; or the true one |

use crate::generate::{self, to_bytes};
use crate::images::Images;
use crate::models::{Role, blocks};
use crate::outputs::Outputs;
use crate::trainer::{StepError, Trainer};
use common::seed::Purpose;
use data::{DataError, image_bytes};
use tch::{Device, Kind, Tensor};

/// The training images, where the networks make theirs of nothing.
pub fn reals(trainer: &mut Trainer, images: &Images, outputs: &mut Outputs) {
    if trainer.communicator().rank() != 0 || trainer.model().role().sampler().is_none() {
        return;
    }
    let config = trainer.config();
    let resolution = config.model.resolution();
    let shape = config.samples.grid.shape(resolution);
    let count = (shape.0 * shape.1).min(images.len() as u32);
    let mut order = images.order();
    let indices: Vec<u32> = (0..u64::from(count)).map(|i| order.index_at(i)).collect();
    let mut bytes = vec![0u8; count as usize * image_bytes(resolution)];
    match images.first().read_batch(resolution, &indices, &mut bytes) {
        Ok(()) => outputs.grid("samples/reals.png".to_owned(), bytes, resolution, resolution, shape),
        Err(error) => tracing::warn!("reals.png could not be drawn: {error}"),
    }
}

/// What the networks make now.
///
/// # Errors
/// When a rank is lost.
pub fn made(trainer: &mut Trainer, images: &Images, outputs: &mut Outputs) -> Result<(), StepError> {
    let directions = match trainer.model().role() {
        Role::Sampler(_) => return fakes(trainer, outputs),
        Role::Translator(translator) => translator.directions().to_vec(),
    };
    for (direction, name) in directions.iter().enumerate() {
        translations(trainer, images, outputs, direction, name)?;
    }
    Ok(())
}

/// The same latents for the whole run, by the averaged weights, shown at full resolution.
fn fakes(trainer: &mut Trainer, outputs: &mut Outputs) -> Result<(), StepError> {
    let config = trainer.config();
    let shown = config.model.resolution();
    let shape = config.samples.grid.shape(shown);
    let level = trainer.stage().level;
    let images = generate::samples(trainer, Purpose::Sample, level, shape.0 * shape.1)?;
    outputs.grid(file(trainer, "fakes"), images, level.resolution, shown, shape);
    Ok(())
}

/// The same images for the whole run, one in each row.
fn translations(
    trainer: &mut Trainer,
    images: &Images,
    outputs: &mut Outputs,
    direction: usize,
    name: &str,
) -> Result<(), StepError> {
    let config = trainer.config();
    let resolution = config.model.resolution();
    let most = config.samples.grid.shape(resolution).1;
    let rows = most.min(looked_at_by_all(trainer, images)?);
    let Role::Translator(translator) = trainer.model().role() else { return Ok(()) };
    let columns = if translator.directions().len() == 2 { 4 } else { 3 };
    let (source, device) = (translator.source(direction), trainer.device());
    let row = columns as usize * image_bytes(resolution);
    let mut unreadable = None;
    let pictures = generate::together(trainer, (row, u32::MAX), rows, |trainer, mine| {
        let Role::Translator(translator) = trainer.model().role() else { return Vec::new() };
        let real = |domain, index| -> Result<Tensor, DataError> {
            Ok(range(&images.look(domain, index, resolution)?, resolution, device))
        };
        let row_of = |index| -> Result<Vec<u8>, DataError> {
            let image = real(source, index)?;
            let made = translator.translate(direction, &image);
            let more = match translator.directions().len() {
                2 => {
                    let back = 1 - direction;
                    vec![translator.translate(back, &made), translator.translate(back, &image)]
                }
                _ => vec![real(1 - source, index)?],
            };
            let list: Vec<Tensor> = [image, made].into_iter().chain(more).collect();
            Ok(to_bytes(&Tensor::cat(&list, 0)))
        };
        let rows = mine.map(|index| {
            row_of(index).unwrap_or_else(|error| {
                unreadable = Some(error);
                vec![0; row]
            })
        });
        rows.flatten().collect()
    })?;
    if let Some(error) = unreadable {
        tracing::warn!("{name} could not be drawn whole: {error}");
    }
    outputs.grid(file(trainer, name), pictures, resolution, resolution, (columns, rows));
    Ok(())
}

/// Images to look at that every rank has: nobody compared those that are not trained on.
pub(crate) fn looked_at_by_all(trainer: &mut Trainer, images: &Images) -> Result<u32, StepError> {
    let mine = images.looked_at().to_le_bytes().to_vec();
    let all = trainer.communicator().gather(mine)?;
    let count = |bytes: Vec<u8>| bytes.try_into().map_or(0, u32::from_le_bytes);
    Ok(all.into_iter().map(count).min().unwrap_or_default())
}

/// Bytes of one image as the networks' range, `[1, 3, r, r]`.
pub(crate) fn range(bytes: &[u8], resolution: u32, device: Device) -> Tensor {
    let side = i64::from(resolution);
    let bytes = Tensor::from_data_size(bytes, &[1, 3, side, side], Kind::Uint8);
    blocks::range(&bytes.to_device(device), Kind::Float)
}

fn file(trainer: &Trainer, name: &str) -> String {
    format!("samples/{name}{:06}.png", trainer.position().images / 1000)
}
