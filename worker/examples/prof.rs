//! Scratch.
use collective::Solo;
use common::config::{Base, Layers, resolve};
fn cpu() -> f64 { let s = std::fs::read_to_string("/proc/self/schedstat").unwrap(); s.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6 }
use tch::{Device, Kind, Tensor};
use worker::communicator::Communicator;
use worker::models;
use worker::trainer::{Flags, Trainer};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (res, iters, upscale) = (a[1].parse::<i64>().unwrap(), a[2].parse::<usize>().unwrap(), a[3].clone());
    let text = format!("name=\"t\"\n[model]\nfamily=\"progan\"\nresolution={res}\nlatent_size=64\nfmap_base=1024\nfmap_max=64\nupscale=\"{upscale}\"\n[data]\nsource=\"i\"\n[train]\ntotal_kimg=1000\n[train.growth]\nstart_resolution={res}\n[train.minibatch]\ndefault=16\n[checkpoint]\nurl=\"memory://t\"\n");
    let folder = std::path::Path::new("/");
    let layers = Layers { base: Base::File { path: "t", text: &text, folder }, env: &[], set: &[], working_dir: folder };
    let config = resolve(&layers, 1).unwrap_or_else(|e| panic!("{e}")).config;
    if std::env::var_os("NOKEEP").is_none() { native::keep_memory().unwrap(); }
    tch::set_num_threads(1);
    let model = models::build(&config, Kind::Float, Device::Cpu);
    let mut t = Trainer::new(config, model, Communicator::new(Box::new(Solo::new(1))), Device::Cpu);
    let real = (Tensor::rand([16, 3, res, res], (Kind::Float, Device::Cpu)) * 255.0).to_kind(Kind::Uint8);
    let mut times = vec![];
    for i in 0..iters + 3 {
        let b = cpu();
        t.step(Some(&real), Flags::default()).unwrap();
        let m = cpu() - b;
        t.step(None, Flags::default()).unwrap();
        if i >= 3 { times.push((cpu() - b, m)); }
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("res {res} median {:.2} ms (d {:.2})", times[iters / 2].0, times[iters / 2].1);
}
