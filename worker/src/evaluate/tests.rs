use super::*;
use crate::prepare;
use crate::trainer::tests::{on_ranks, resolved};
use common::config::resolved::RunConfig;
use data::Picture;
use std::path::Path;

/// Images of 16 pixels, each its own.
fn picture(number: u32, side: u32) -> Vec<u8> {
    let mut stream = Stream::new(u64::from(number), Purpose::Sample, 0, 0);
    let pixels: Vec<u8> = (0..3 * side * side).map(|i| ((i * number) % 200) as u8 + stream.below(50) as u8).collect();
    Picture { width: side, height: side, pixels, alpha: None }.to_png().unwrap()
}

/// Two domains; of the four images of `testA`, two have twins in `testB`.
fn domains(folder: &Path) {
    let sets: [(&str, &[u32]); 4] =
        [("trainA", &[1, 2, 3]), ("trainB", &[4, 5]), ("testA", &[6, 7, 8, 9]), ("testB", &[6, 7, 10, 11])];
    for (name, numbers) in sets {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for number in numbers {
            let other = if name.ends_with('B') { 100 } else { 0 };
            std::fs::write(folder.join(name).join(format!("{number:02}.png")), picture(number + other, 16)).unwrap();
        }
    }
}

fn config(folder: &Path, family: &str, kinds: &str) -> RunConfig {
    let model = match family {
        "cyclegan" => "g_width = 4\ng_blocks = 1\nd_width = 4\nd_layers = 1",
        _ => "width = 8\nlatent_size = 8",
    };
    let load = if family == "cyclegan" { "load_size = 16" } else { "" };
    let folder = folder.display();
    resolved(&format!(
        "name = \"t\"\n[model]\nfamily = \"{family}\"\nresolution = 16\n{model}\n[data]\nsource = \"{folder}\"\ncache = \"{folder}/cache\"\n\
         {load}\n[metrics]\nkinds = [{kinds}]\n[checkpoint]\nurl = \"memory://t\"\n"
    ))
}

/// What every rank of a world finds: the same.
fn found(world: u32, config: &RunConfig) -> Vec<Quality> {
    let images = Arc::new(prepare::images(config, &|_| ()).unwrap().images);
    let answers = on_ranks(world, config, move |mut trainer| {
        let level = trainer.stage().level;
        let mut evaluator = Evaluator::new(Arc::clone(&images), None);
        let first = evaluator.evaluate(&mut trainer, level).unwrap();
        // the second time the real images are known
        assert_eq!(evaluator.evaluate(&mut trainer, level).unwrap(), first);
        first
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    answers.into_iter().next().unwrap()
}

fn names(of: &[Quality]) -> Vec<String> {
    of.iter().map(|quality| format!("{} {}", quality.metric, quality.of).trim_end().to_owned()).collect()
}

#[test]
fn translations_are_measured_alike_by_every_world() {
    let folder = tempfile::tempdir().unwrap();
    domains(folder.path());
    let config = config(folder.path(), "cyclegan", "\"cycle\", \"twins\", \"diversity\"");
    let alone = found(1, &config);
    let each = ["ms_ssim", "change_l1", "likeness", "cycle_l1", "twin_l1", "twin_ssim"];
    let expected: Vec<String> = ["a2b", "b2a"].iter().flat_map(|of| each.map(|name| format!("{name} {of}"))).collect();
    assert_eq!(names(&alone), expected);
    for quality in &alone {
        assert_eq!(quality.count, 4, "{quality:?}");
        let untouched = !["ms_ssim", "likeness"].contains(&quality.metric.as_str());
        assert_eq!(
            (quality.untouched.len(), quality.floor.len()),
            (usize::from(untouched), usize::from(quality.metric == "ms_ssim"))
        );
        assert!(quality.levels[&16].abs() <= 1.0);
    }
    for world in [2, 3] {
        for (theirs, mine) in found(world, &config).iter().zip(&alone) {
            assert_eq!(theirs.untouched, mine.untouched);
            assert!((theirs.mean() - mine.mean()).abs() < 1e-5, "{theirs:?} {mine:?}");
        }
    }
}

#[test]
fn images_made_of_nothing_are_measured_beside_those_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    domains(folder.path());
    let config = config(folder.path(), "sngan", "\"swd\", \"diversity\"");
    let alone = found(1, &config);
    assert_eq!(names(&alone), ["swd", "ms_ssim"]);
    assert!(alone[1].levels[&16] < 1.0 && alone[1].floor[&16] < 1.0, "{alone:?}");
    assert_eq!(names(&found(2, &config)), ["swd", "ms_ssim"]);
}

#[test]
fn twins_are_those_of_one_name() {
    let folder = tempfile::tempdir().unwrap();
    domains(folder.path());
    let images = prepare::images(&config(folder.path(), "cyclegan", ""), &|_| ()).unwrap().images;
    assert_eq!(images.twins(0, 4), [Some(0), Some(1), None, None]);
    assert_eq!(images.twins(1, 1), [Some(0)]);
}

#[test]
fn an_image_goes_with_itself_and_against_its_negative() {
    let image = Tensor::from_slice(&[-1.0f32, -0.5, 0.2, 0.9]).view([1, 1, 2, 2]).expand([1, 3, 2, 2], false);
    assert!((correlation(&image, &(&image * 0.3 + 0.1)) - 1.0).abs() < 1e-5);
    assert!((correlation(&image, &(-&image)) + 1.0).abs() < 1e-5);
    assert!(correlation(&image, &image.zeros_like()).is_nan());
    assert!((l1(&[0, 255], &[255, 255]) - 0.5).abs() < 1e-6);
}

#[test]
fn rows_that_are_no_numbers_are_left_out() {
    let features = Tensor::from_slice(&[1.0f32, 2.0, f32::NAN, 4.0, 5.0, 6.0]).view([3, 2]);
    assert_eq!(Vec::<f32>::try_from(finite(&features).view([-1])).unwrap(), [1.0, 2.0, 5.0, 6.0]);
    assert_eq!(mean([f32::NAN, 1.0, 3.0].into_iter()), Some(2.0));
    assert_eq!(mean([f32::NAN].into_iter()), None);
}
