//! Training images: a folder or ZIP archive of PNG, JPEG and WebP files of any sizes becomes, once, a pyramid of square
//! images at every resolution from 4x4 up, cached on disk by content; then any image of any level is one read.
//!
//! Refuses to do: training, tensors, the network. Trusts no file: sizes are bounded before they are allocated, names are
//! labels and never places to write to, a damaged image is a named [`Skipped`] and never a panic.
//!
//! | file | holds |
//! |---|---|
//! | `source/` | what a folder or archive offers, read within bounds |
//! | `container`, `decode` | bytes of one file -> one square RGB image |
//! | `levels` | the arithmetic of the pyramid (pure) |
//! | `build`, `cache`, `prepare` | every file in parallel, once per machine, whoever else is building |
//! | `index`, `pyramid` | the format on disk and its reader |
//! | `order` | which image is shown when (pure) |
//! | `grid` | sample grids as PNG (pure) |
//! | `picture` | one image of any size, with its transparency |

mod build;
mod cache;
mod container;
mod decode;
mod error;
mod grid;
mod index;
mod levels;
mod order;
mod picture;
mod prepare;
mod pyramid;
mod source;

pub use error::{DataError, Skipped, Why};
pub use grid::{save_grid, upscale_nearest};
pub use levels::{MAX_RESOLUTION, MAX_SIDE, MIN_RESOLUTION, View, image_bytes, resolutions};
pub use order::Order;
pub use picture::Picture;
pub use prepare::{Prepared, Progress, Request, prepare};
pub use pyramid::Pyramid;
