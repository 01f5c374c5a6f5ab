//! `bench`: how long one iteration takes (a step of D and one of G), or a checkpoint. `scripts/bench` calls it; so can you:
//!
//! ```text
//! cargo run --release -p worker --example bench -- --res 4,8,16,32 --world 2
//! cargo run --release -p worker --example bench -- --res 1024 --fmap-base 8192 --fmap-max 512 --checkpoint file:///tmp/c
//! ```
//!
//! One JSON line per resolution. The iteration is that of a run: the same trainer, the same collectives between processes
//! on loopback; only images are made up and lie in memory. It refuses to report a training whose losses are not finite.

mod checkpoint;
mod iteration;
mod ranks;

use clap::{Parser, ValueEnum};
use common::config::resolved::RunConfig;
use common::config::{Base, Layers, resolve};
use native::cuda;
use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use tch::{Device, Kind};
use worker::communicator::Communicator;
use worker::trainer::Trainer;
use worker::{environment, models};

/// Anything that ends a measurement; it is printed and nothing branches on it.
type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Debug, Parser)]
#[command(about = "Times of one training iteration, or of one checkpoint, as JSON lines")]
struct Options {
    /// Resolutions, each with networks that end there.
    #[arg(long, value_delimiter = ',', default_value = "4,8,16,32")]
    res: Vec<u32>,
    /// Global minibatch.
    #[arg(long, default_value_t = 16)]
    batch: u32,
    /// Processes that share the minibatch.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    world: u32,
    /// Threads of each process.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    threads: i32,
    /// Iterations that count.
    #[arg(long, default_value_t = 20)]
    iters: u32,
    /// Iterations before them.
    #[arg(long, default_value_t = 3)]
    warmup: u32,
    /// Share of the new resolution in the image; below 1 both networks are in the middle of a fade.
    #[arg(long, default_value_t = 1.0)]
    alpha: f64,
    #[arg(long, value_enum, default_value_t = Scaling::Unfused)]
    upscale: Scaling,
    #[arg(long, default_value_t = 1024)]
    fmap_base: u32,
    #[arg(long, default_value_t = 64)]
    fmap_max: u32,
    /// Length of a latent vector [default: fmap_max].
    #[arg(long)]
    latent: Option<u32>,
    /// Which networks.
    #[arg(long, value_enum, default_value = "progan")]
    family: Family,
    /// Feature maps of the first layers of a CycleGAN.
    #[arg(long, default_value_t = 64)]
    width: u32,
    /// Residual blocks of a CycleGAN's generators.
    #[arg(long, default_value_t = 6)]
    blocks: u32,
    /// Where networks and images lie.
    #[arg(long, value_enum, default_value = "cpu")]
    device: Place,
    /// In what networks compute.
    #[arg(long, value_enum, default_value = "fp32")]
    precision: Precision,
    /// Store the state at this root, read it back and compare, instead of timing iterations. An S3-compatible store is
    /// found by the AWS_* variables.
    #[arg(long, value_name = "URL")]
    checkpoint: Option<String>,
    /// Position of this process among its peers; set by the program itself.
    #[arg(long, hide = true)]
    rank: Option<u32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Family {
    Progan,
    Cyclegan,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Place {
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Precision {
    Fp32,
    Tf32,
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scaling {
    Fused,
    Unfused,
}

impl Options {
    /// The run whose iteration is measured at `res`.
    fn config(&self, res: u32) -> Result<RunConfig, Failure> {
        let Self { batch, fmap_base, fmap_max, threads, .. } = self;
        let latent = self.latent.unwrap_or(*fmap_max);
        let upscale = match self.upscale {
            Scaling::Fused => "fused",
            Scaling::Unfused => "unfused",
        };
        // stable from the first image on, or one level below it so that a fade leads here
        let start = if self.alpha < 1.0 { res / 2 } else { res };
        let model = match self.family {
            Family::Progan => format!(
                "family = \"progan\"\nresolution = {res}\nlatent_size = {latent}\nupscale = \"{upscale}\"\n\
                 fmap_base = {fmap_base}\nfmap_max = {fmap_max}\n\
                 [train.growth]\nstart_resolution = {start}\nstable_kimg = {KIMG}\nfade_kimg = {KIMG}\n"
            ),
            Family::Cyclegan => format!(
                "family = \"cyclegan\"\nresolution = {res}\ng_width = {width}\nd_width = {width}\ng_blocks = {blocks}\n",
                width = self.width,
                blocks = self.blocks,
            ),
        };
        let precision = match self.precision {
            Precision::Fp32 => "fp32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        };
        let text = format!(
            "name = \"bench\"\n[model]\n{model}\
             [data]\nsource = \"in memory\"\n\
             [train]\ntotal_kimg = 100000\nthreads = {threads}\nprecision = \"{precision}\"\n\
             [train.minibatch]\ndefault = {batch}\n\
             [checkpoint]\nurl = \"memory://bench\"\n"
        );
        let folder = std::path::Path::new("/");
        let base = Base::File { path: "the benchmark's own experiment", text: &text, folder };
        let layers = Layers { base, env: &[], set: &[], working_dir: folder };
        Ok(resolve(&layers, self.world).map_err(|e| e.to_string())?.config)
    }

    /// The device that everything lies on.
    fn device(&self) -> Device {
        match self.device {
            Place::Cpu => Device::Cpu,
            Place::Cuda => Device::Cuda(0),
        }
    }

    /// Images seen at which the level has this `alpha`.
    fn images(&self) -> u64 {
        if self.alpha < 1.0 { ((1.0 + self.alpha) * KIMG as f64 * 1000.0) as u64 } else { 0 }
    }
}

/// Length of a phase: so long that nothing grows while it is measured.
const KIMG: u64 = 10_000;

/// A trainer at the beginning of `config`.
fn trainer(config: &RunConfig, device: Device, communicator: Communicator) -> Trainer {
    Trainer::new(config.clone(), models::build(config, Kind::Float, device), communicator, device)
}

/// Until a device has done what was asked of it.
fn settle(device: Device) {
    if let Device::Cuda(gpu) = device {
        tch::Cuda::synchronize(gpu as i64);
    }
}

fn main() -> ExitCode {
    // as the worker does, before anything touches libtorch
    let cuda = cuda::load(&environment::library_folders());
    if let Err(error) = native::keep_memory() {
        eprintln!("bench: {error}");
    }
    let options = Options::parse();
    if options.device == Place::Cuda && !tch::Cuda::is_available() {
        eprintln!("bench: --device cuda needs a GPU and libtorch's CUDA half ({cuda:?}): scripts/setup --cuda");
        return ExitCode::FAILURE;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    if !(0.0..=1.0).contains(&options.alpha) || options.iters == 0 {
        return Err("--alpha lies between 0 and 1, and --iters is at least 1".into());
    }
    tch::set_num_threads(options.threads);
    native::allow_tf32(options.precision == Precision::Tf32)?;
    match (&options.checkpoint, options.rank) {
        (Some(url), _) => options.res.iter().try_for_each(|&res| checkpoint::measure(options, res, url)),
        (None, Some(rank)) => options.res.iter().try_for_each(|&res| {
            let mut listener = ranks::listen()?;
            let peers: Vec<SocketAddr> = ranks::exchange(&listener)?;
            iteration::measure(options, res, ranks::connect(&mut listener, rank, peers)?)
        }),
        (None, None) if options.world == 1 => {
            let alone = || Communicator::new(Box::new(collective::Solo::new(1)));
            options.res.iter().try_for_each(|&res| iteration::measure(options, res, alone()))
        }
        (None, None) => ranks::spawn(options),
    }
}
