use super::*;
use crate::export::Export;
use crate::trained;
use crate::weights::pth::Value;
use crate::weights::{Element, Entry, read, write_torch};
use common::config::resolved::S3;
use common::config::{Base, Layers, resolve};
use common::families::elsewhere::Format;
use common::growth::Level;
use std::path::PathBuf;
use tempfile::{TempDir, tempdir};

/// A folder that nothing is ever stored in.
const NOWHERE: &str = "/nowhere";

const CYCLEGAN: &str = "family = \"cyclegan\"\nresolution = 16\ng_width = 4\ng_blocks = 2\nd_width = 4\nd_layers = 1";
/// One that the authors' code cannot build.
const SHALLOW: &str = "family = \"cyclegan\"\nresolution = 16\ng_width = 4\ng_blocks = 2\nd_width = 4\nd_layers = [1, 0]\ng_downs = 1\n\
    g_norm = \"none\"\nupscale = \"nearest\"\naverage = true";
const PIX2PIX: &str = "family = \"pix2pix\"\nresolution = 32\ng_width = 2\ng_downs = 5\nd_width = 2\nd_layers = 1";
const SNGAN: &str = "family = \"sngan\"\nresolution = 8\nlatent_size = 8\nwidth = 8";
const PROGAN: &str = "resolution = 16\nlatent_size = 8\nfmap_base = 64\nfmap_max = 8\nupscale = \"unfused\"";

/// A run of these networks, in the folder `store`; one that grows does so every 100 images, and fades for 100 more.
fn config(keys: &str, seed: u64, store: &Path) -> RunConfig {
    let (load, growth) = match keys {
        CYCLEGAN | SHALLOW | PIX2PIX => ("load_size = 40", ""),
        PROGAN => ("", "[train.growth]\nstable_kimg = 0.1\nfade_kimg = 0.1"),
        _ => ("", ""),
    };
    let text = format!(
        "name = \"t\"\nseed = {seed}\n[model]\n{keys}\n[data]\nsource = \"images\"\n{load}\n[checkpoint]\nurl = \"{}\"\n{growth}",
        store.display()
    );
    let base = Base::File { path: "t.toml", text: &text, folder: store };
    let layers = Layers { base, env: &[], set: &[], working_dir: store };
    resolve(&layers, 1).unwrap_or_else(|error| panic!("{error}")).config
}

/// Networks of which no tensor is as it was drawn.
fn trained_model(config: &RunConfig) -> Box<dyn GanModel> {
    let model = models::build(config, Kind::Float, Device::Cpu);
    for mut tensor in tensors(model.as_ref()).into_values() {
        let noise = tensor.randn_like() * 0.1;
        no_grad(|| tensor += noise);
    }
    model
}

/// Networks, written in `format` into a folder, as far as they have grown.
fn written(keys: &str, format: Format, level: Level) -> (TempDir, Box<dyn GanModel>) {
    let folder = tempdir().unwrap();
    let config = config(keys, 1, folder.path());
    let model = trained_model(&config);
    let export = Export { of: &config.model, model: model.as_ref(), level, run: "t", images: ImagesSeen(2600) };
    export.write(format, &folder.path().join("out")).unwrap();
    (folder, model)
}

fn full(keys: &str) -> Level {
    Level { lod: 0.0, resolution: config(keys, 1, Path::new(NOWHERE)).model.resolution() }
}

/// A model of another seed with what lies at `from` put in.
fn taken(keys: &str, from: &Path, network: Option<&str>) -> Result<(Taken, Box<dyn GanModel>), String> {
    let config = config(keys, 2, Path::new(NOWHERE));
    let model = models::build(&config, Kind::Float, Device::Cpu);
    let taken = put(&config.model, from, network, model.as_ref()).map_err(|failure| failure.to_string())?;
    Ok((taken, model))
}

fn distance(one: &Tensor, other: &Tensor) -> f64 {
    if one.numel() == 0 { 0.0 } else { (one - other).abs().max().double_value(&[]) }
}

#[test]
fn every_family_comes_back_as_it_was_in_every_form() {
    for (keys, exact) in [(CYCLEGAN, true), (SHALLOW, true), (PIX2PIX, true), (SNGAN, true), (PROGAN, false)] {
        for &format in Format::of(&config(keys, 1, Path::new(NOWHERE)).model) {
            let (folder, model) = written(keys, format, full(keys));
            let (taken, other) = taken(keys, &folder.path().join("out"), None).unwrap();
            assert_eq!(taken.drawn, [] as [&str; 0], "{keys} as {format}");
            let (before, after) = (tensors(model.as_ref()), tensors(other.as_ref()));
            for (name, tensor) in before.iter().filter(|(name, _)| !name.starts_with("pool.")) {
                let apart = distance(tensor, &after[name]);
                let most = if exact { 0.0 } else { 1e-6 * tensor.abs().max().double_value(&[]) };
                assert!(apart <= most, "{keys} as {format}: {name} is {apart:e} away");
            }
        }
    }
}

#[test]
fn files_are_called_as_their_readers_expect() {
    let names = |keys, format| {
        let (folder, _) = written(keys, format, full(keys));
        let entries = std::fs::read_dir(folder.path().join("out")).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let authors = ["D_A", "D_B", "G_A", "G_B"].map(|network| format!("latest_net_{network}.pth"));
    assert_eq!(names(CYCLEGAN, Format::PytorchCycleGan), authors);
    let ours = ["D_A", "D_A_2", "D_B", "D_B_2", "G_A", "G_B", "average_G_A", "average_G_B"]
        .map(|network| format!("{network}.safetensors"));
    assert_eq!(names(SHALLOW, Format::Safetensors), ours);
    assert_eq!(Format::of(&config(SHALLOW, 1, Path::new(NOWHERE)).model), [Format::Safetensors]);
    assert_eq!(names(PIX2PIX, Format::Safetensors), ["D.safetensors", "G.safetensors"]);
    assert_eq!(names(PROGAN, Format::GanZoo), ["t_s2_i2.pt"]);
    assert_eq!(names(SNGAN, Format::Safetensors), ["average.safetensors", "d.safetensors", "g.safetensors"]);
}

#[test]
fn a_form_that_a_family_has_not_is_refused_and_nothing_is_overwritten() {
    let (folder, model) = written(CYCLEGAN, Format::PytorchCycleGan, full(CYCLEGAN));
    let config = config(CYCLEGAN, 1, folder.path());
    let export =
        Export { of: &config.model, model: model.as_ref(), level: full(CYCLEGAN), run: "t", images: ImagesSeen(0) };
    let said = |format| export.write(format, &folder.path().join("out")).unwrap_err().to_string();
    assert!(said(Format::GanZoo).contains("pytorch-cyclegan, safetensors"), "{}", said(Format::GanZoo));
    assert!(said(Format::PytorchCycleGan).contains("latest_net_G_A.pth exists already"));
}

/// Names and shapes are the same; what is computed is not.
#[test]
fn generators_of_the_authors_go_into_no_others() {
    let (folder, _) = written(CYCLEGAN, Format::PytorchCycleGan, full(CYCLEGAN));
    let bare = format!("{CYCLEGAN}\ng_norm = \"none\"\nskips = true");
    let said = taken(&bare, &folder.path().join("out/latest_net_G_A.pth"), None).map(|_| ()).unwrap_err();
    assert!(said.contains("G_A: ") && said.contains("leave out model.g_norm, model.skips"), "{said}");
    let (judge, _) = taken(&bare, &folder.path().join("out/latest_net_D_A.pth"), None).unwrap();
    assert_eq!(judge.from[0].0, "D_A");
    let config = config(&bare, 1, folder.path());
    let model = models::build(&config, Kind::Float, Device::Cpu);
    let export =
        Export { of: &config.model, model: model.as_ref(), level: full(CYCLEGAN), run: "t", images: ImagesSeen(0) };
    let said = export.write(Format::PytorchCycleGan, &folder.path().join("none")).unwrap_err().to_string();
    assert!(said.contains("model.g_norm, model.skips") && said.contains("written as safetensors"), "{said}");
}

#[test]
fn one_file_is_one_network_and_the_others_keep_what_was_drawn() {
    let (folder, model) = written(CYCLEGAN, Format::PytorchCycleGan, full(CYCLEGAN));
    let file = folder.path().join("out/latest_net_G_B.pth");
    let (known, other) = taken(CYCLEGAN, &file, None).unwrap();
    assert_eq!((known.from[0].0, known.drawn), ("G_B", vec!["G_A", "D_A", "D_B"]));
    let of = |model: &dyn GanModel, name: &str| tensors(model)[name].shallow_clone();
    let name = "g.b2a10.conv_block.1.weight";
    assert!(of(model.as_ref(), name).equal(&of(other.as_ref(), name)));

    // a one-way file says neither which way it is nor is it called after it
    let one_way = folder.path().join("latest_net_G.pth");
    std::fs::rename(&file, &one_way).unwrap();
    let said = taken(CYCLEGAN, &one_way, None).err().unwrap();
    assert!(said.contains("--network, one of G_A, G_B, D_A, D_B"), "{said}");
    let (known, other) = taken(CYCLEGAN, &one_way, Some("G_A")).unwrap();
    assert_eq!(known.from[0].0, "G_A");
    assert!(of(model.as_ref(), name).equal(&of(other.as_ref(), "g.a2b10.conv_block.1.weight")));
    assert!(taken(CYCLEGAN, &one_way, Some("netG")).err().unwrap().contains("networks are G_A"));
    assert!(taken(CYCLEGAN, folder.path(), Some("G_A")).err().unwrap().contains("is a folder"));
}

#[test]
fn what_does_not_fit_is_named() {
    let (folder, _) = written(CYCLEGAN, Format::PytorchCycleGan, full(CYCLEGAN));
    let file = folder.path().join("out/latest_net_G_A.pth");
    let said = |keys: &str| {
        let config = config(keys, 2, Path::new(NOWHERE));
        let model = models::build(&config, Kind::Float, Device::Cpu);
        put(&config.model, &file, Some("G_A"), model.as_ref()).unwrap_err().to_string()
    };
    let deeper = said(&CYCLEGAN.replace("g_blocks = 2", "g_blocks = 3"));
    assert!(deeper.contains("lacks model.12.conv_block.1.bias") && deeper.contains(" more"), "{deeper}");
    let shallower = said(&CYCLEGAN.replace("g_blocks = 2", "g_blocks = 1"));
    assert!(shallower.contains("has besides model.11.conv_block"), "{shallower}");
    let wider = said(&CYCLEGAN.replace("g_width = 4", "g_width = 5"));
    assert!(wider.contains("other shapes: model.1.bias is [4], not [5]"), "{wider}");
    assert!(wider.contains("latest_net_G_A.pth does not fit: G_A"), "{wider}");
}

#[test]
fn which_files_of_a_folder_are_meant_is_known() {
    let (folder, _) = written(PIX2PIX, Format::PytorchCycleGan, full(PIX2PIX));
    let out = folder.path().join("out");
    // earlier epochs lie beside the latest one
    std::fs::copy(out.join("latest_net_G.pth"), out.join("5_net_G.pth")).unwrap();
    std::fs::write(out.join("loss_log.txt"), "losses").unwrap();
    assert_eq!(taken(PIX2PIX, &out, None).unwrap().0.from.len(), 2);
    std::fs::copy(out.join("latest_net_G.pth"), out.join("G.pt")).unwrap();
    assert!(taken(PIX2PIX, &out, None).err().unwrap().contains("both hold G"));
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for name in ["one.pth", "two.pth"] {
        std::fs::copy(out.join("latest_net_G.pth"), other.join(name)).unwrap();
    }
    assert!(taken(PIX2PIX, &other, None).err().unwrap().contains("2 files of weights"));
}

/// A network as somebody's file holds it, its names changed by `rename`, its tensors by `change`.
fn rewritten(from: &Path, to: &Path, rename: impl Fn(&str) -> String, change: impl Fn(&str, Tensor) -> Tensor) {
    let tensors: Vec<(String, Tensor)> =
        read(from).unwrap().into_iter().map(|(name, tensor)| (rename(&name), change(&name, tensor))).collect();
    let entry = |(name, tensor): &(String, Tensor)| {
        let element = if tensor.kind() == Kind::Int64 { Element::Int } else { Element::Float };
        let made = tensor.shallow_clone();
        Entry::new(name, &tensor.size(), element, move || made.shallow_clone())
    };
    write_torch(to, &Value::State(tensors.iter().map(entry).collect())).unwrap();
}

#[test]
fn wrappers_in_names_and_what_norms_counted_are_passed_over() {
    let (folder, _) = written(CYCLEGAN, Format::PytorchCycleGan, full(CYCLEGAN));
    let (from, to) = (folder.path().join("out/latest_net_D_A.pth"), folder.path().join("latest_net_D_A.pth"));
    // of PyTorch before 0.4, where instance norms counted, and of several GPUs
    let counting = |name: &str| match name {
        "model.5.bias" => "module.model.3.running_mean".to_owned(),
        _ => format!("module.{name}"),
    };
    rewritten(&from, &to, counting, |_, tensor| tensor);
    let said = taken(CYCLEGAN, &to, None).err().unwrap();
    assert!(said.contains("lacks model.5.bias") && !said.contains("besides"), "{said}");

    let (folder, model) = written(PROGAN, Format::Safetensors, full(PROGAN));
    let (from, to) = (folder.path().join("out/netG.safetensors"), folder.path().join("netG.pt"));
    // the zoo's early files
    rewritten(&from, &to, |name| name.replace(".module", ""), |_, tensor| tensor);
    let (known, other) = taken(PROGAN, &to, None).unwrap();
    assert_eq!(known.drawn, ["netD"]);
    // a generator alone stands for its average too
    let (before, after) = (tensors(model.as_ref()), tensors(other.as_ref()));
    for name in ["g.16.conv1.weight", "average.g.16.conv1.weight"] {
        assert!(before["g.16.conv1.weight"].equal(&after[name]), "{name}");
    }
}

#[test]
fn a_bias_for_each_position_is_no_bias_of_ours() {
    let (folder, _) = written(PROGAN, Format::Safetensors, full(PROGAN));
    let (from, to) = (folder.path().join("out/netG.safetensors"), folder.path().join("netG.pt"));
    rewritten(&from, &to, str::to_owned, |name, tensor| match name {
        "formatLayer.module.bias" => tensor.randn_like(),
        _ => tensor,
    });
    let said = taken(PROGAN, &to, None).err().unwrap();
    assert!(said.contains("formatLayer.bias differs by up to") && said.contains("16 positions"), "{said}");
    std::fs::remove_file(&to).unwrap();
    rewritten(&from, &to, str::to_owned, |name, tensor| match name {
        "formatLayer.module.bias" => tensor * f64::NAN,
        _ => tensor,
    });
    assert!(taken(PROGAN, &to, None).err().unwrap().contains("not finite"));
}

#[test]
fn networks_that_have_grown_half_way_stand_half_way_in_the_schedule() {
    let (folder, model) = written(PROGAN, Format::GanZoo, Level { lod: 1.0, resolution: 8 });
    let (known, other) = taken(PROGAN, &folder.path().join("out/t_s1_i2.pt"), None).unwrap();
    assert_eq!((known.resolution, known.drawn.len()), (8, 0));
    let (before, after) = (tensors(model.as_ref()), tensors(other.as_ref()));
    // 4x4 is not used any more, but the zoo's file holds it
    for name in ["g.4.rgb.weight", "d.8.conv1.weight", "average.g.8.rgb.bias"] {
        assert!(distance(&before[name], &after[name]) < 1e-6, "{name}");
    }
    assert!(distance(&before["g.16.conv0.weight"], &after["g.16.conv0.weight"]) > 0.1);
    let small = PROGAN.replace("resolution = 16", "resolution = 4");
    let config = config(&small, 2, Path::new(NOWHERE));
    let model = models::build(&config, Kind::Float, Device::Cpu);
    let said = put(&config.model, &folder.path().join("out"), None, model.as_ref()).unwrap_err().to_string();
    assert!(said.contains("works at 8 px, and the run ends at 4 px"), "{said}");
}

/// From files to a checkpoint that can be used, and exported once more.
#[test]
fn a_checkpoint_holds_what_came_in() {
    let half = Level { lod: 1.0, resolution: 8 };
    for (keys, format, level, images, name) in [
        (CYCLEGAN, Format::PytorchCycleGan, full(CYCLEGAN), 0, "g.a2b10.conv_block.1.weight"),
        (SNGAN, Format::Safetensors, full(SNGAN), 0, "average.g.0.dense.weight"),
        (PROGAN, Format::GanZoo, half, 200, "average.g.8.conv1.weight"),
        (PROGAN, Format::Safetensors, full(PROGAN), 400, "average.g.16.rgb.weight"),
    ] {
        let (folder, model) = written(keys, format, level);
        let config = config(keys, 2, folder.path());
        let json = serde_json::to_string(&config).unwrap();
        import(&json, &folder.path().join("out"), None).unwrap();
        let url = folder.path().join("t").display().to_string();
        let found = trained::find(&url, &S3::default()).unwrap();
        let cursor = &found.manifest.cursor;
        assert_eq!((cursor.images, cursor.cycle_images, cursor.steps, cursor.last_knee), (images, images, 0, None));
        assert!(!found.manifest.dataset.is_known() && found.manifest.generation == NOBODY);
        let used = trained::open(&url, &S3::default()).unwrap();
        let (before, after) = (tensors(model.as_ref()), tensors(used.model.as_ref()));
        assert!(distance(&before[name], &after[name]) < 1e-6, "{keys}: {name}");
        // moments are there, and zero
        let moments = found.manifest.parts.iter().flat_map(|part| &part.tensors);
        assert!(moments.filter(|tensor| tensor.name.starts_with("first.")).count() > 0);

        let again: PathBuf = folder.path().join("again");
        crate::export::export(&url, &format.to_string(), &again, &S3::default()).unwrap();
        for entry in std::fs::read_dir(folder.path().join("out")).unwrap() {
            let name = entry.unwrap().file_name();
            // the zoo's file is called after the images seen, too
            if format != Format::GanZoo {
                let (one, other) = (read(&folder.path().join("out").join(&name)), read(&again.join(&name)));
                let (one, other) = (one.unwrap(), other.unwrap());
                assert!(one.iter().all(|(name, tensor)| distance(tensor, &other[name]) < 1e-5), "{name:?}");
            }
        }
    }
}
