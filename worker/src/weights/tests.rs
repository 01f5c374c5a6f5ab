use super::pth::Value;
use super::*;
use pytorch_reader::PickleValue as Read;
use safetensors::tensor::TensorView;
use std::io::Write;
use tempfile::tempdir;

fn numbers(count: i64, shape: &[i64]) -> Tensor {
    let values: Vec<f32> = (0..count).map(|i| i as f32 * 0.25 - 1.0).collect();
    Tensor::from_slice(&values).view(shape)
}

/// A weight, a scalar of integers, and an empty tensor.
fn entries() -> Vec<Entry<'static>> {
    let counted = || Tensor::from_slice(&[7i64]).view(());
    vec![
        Entry::new("model.1.weight", &[2, 3, 1, 2], Element::Float, || numbers(12, &[2, 3, 1, 2])),
        Entry::new("model.2.num_batches_tracked", &[], Element::Int, counted),
        Entry::new("model.1.bias", &[2], Element::Float, || numbers(4, &[2, 2]).select(1, 1)),
    ]
}

fn is_what_was_written(found: &BTreeMap<String, Tensor>) {
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["model.1.bias", "model.1.weight", "model.2.num_batches_tracked"]);
    let weight = &found["model.1.weight"];
    assert_eq!((weight.size(), weight.kind()), (vec![2, 3, 1, 2], Kind::Float));
    assert!(weight.equal(&numbers(12, &[2, 3, 1, 2])));
    // it was strided in memory
    assert_eq!(Vec::<f32>::try_from(&found["model.1.bias"]).unwrap(), [-0.75, -0.25]);
    let count = &found["model.2.num_batches_tracked"];
    assert_eq!((count.size(), count.kind(), count.int64_value(&[])), (vec![], Kind::Int64, 7));
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempdir().unwrap();
    let (safe, torch) = (folder.path().join("a.safetensors"), folder.path().join("a.pth"));
    write_safetensors(&safe, &entries()).unwrap();
    is_what_was_written(&read(&safe).unwrap());
    write_torch(&torch, &Value::State(entries())).unwrap();
    is_what_was_written(&read(&torch).unwrap());
    // and nothing else lies there
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn one_file_holds_several_networks_and_facts_beside_them() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("zoo.pt");
    let depths = [256, 70_000, -3, i64::MAX].map(Value::Int);
    let facts = vec![
        ("depthOtherScales", Value::List(depths.into())),
        ("alpha", Value::Float(0.5)),
        ("lossCriterion", Value::Text("WGANGP".to_owned())),
        ("attribKeysOrder", Value::None),
        ("equalizedlR", Value::Bool(true)),
        ("none", Value::Dictionary(vec![])),
    ];
    let networks =
        vec![("config", Value::Dictionary(facts)), ("netG", Value::State(entries())), ("netD", Value::State(vec![]))];
    write_torch(&path, &Value::Dictionary(networks)).unwrap();
    let found = read(&path).unwrap();
    assert_eq!(found.len(), 3);
    is_what_was_written(&below(&found, "netG"));
    assert!(below(&found, "netD").is_empty() && below(&found, "net").is_empty());
    let config = PytorchReader::read_pickle_data(&path, Some("config")).unwrap();
    let Read::Dict(config) = config else { panic!("{config:?}") };
    let depths = [256, 70_000, -3, i64::MAX].map(Read::Int);
    assert_eq!(config["depthOtherScales"], Read::List(depths.into()));
    assert_eq!((&config["alpha"], &config["equalizedlR"]), (&Read::Float(0.5), &Read::Bool(true)));
    assert_eq!((&config["attribKeysOrder"], &config["lossCriterion"]), (&Read::None, &Read::String("WGANGP".into())));
}

#[test]
fn tensors_begin_where_torch_has_them_begin() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.pth");
    write_torch(&path, &Value::State(entries())).unwrap();
    let mut archive = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
    let expected =
        ["data.pkl", "byteorder", "data/0", "data/1", "data/2", "version"].map(|name| format!("archive/{name}"));
    for (i, name) in expected.iter().enumerate() {
        let entry = archive.by_index(i).unwrap();
        let how = (entry.name().unwrap().into_owned(), entry.compression());
        assert_eq!(how, (name.clone(), zip::CompressionMethod::Stored));
        assert_eq!(entry.data_start().unwrap() % 64, 0, "{name}");
    }
    assert_eq!(archive.len(), expected.len());
}

#[test]
fn floats_of_any_width_become_32_bits_wide() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("wide.safetensors");
    let (double, half, brain) = ((-1.5f64).to_le_bytes(), 0xbe00u16.to_le_bytes(), 0xbfc0u16.to_le_bytes());
    let view = |dtype, bytes| TensorView::new(dtype, vec![1], bytes).unwrap();
    let views = [
        ("double", view(Dtype::F64, &double[..])),
        ("half", view(Dtype::F16, &half[..])),
        ("brain", view(Dtype::BF16, &brain[..])),
        ("unknown to libtorch", view(Dtype::U16, &half[..])),
    ];
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let found = read(&path).unwrap();
    assert_eq!(found.len(), 3);
    for (name, tensor) in found {
        assert_eq!((tensor.kind(), tensor.double_value(&[0])), (Kind::Float, -1.5), "{name}");
    }
}

#[test]
fn nothing_that_exists_is_overwritten_and_nothing_half_is_left() {
    let folder = tempdir().unwrap();
    for name in ["a.safetensors", "a.pth"] {
        let path = folder.path().join(name);
        std::fs::write(&path, b"mine").unwrap();
        let written = match name {
            "a.pth" => write_torch(&path, &Value::State(entries())),
            _ => write_safetensors(&path, &entries()),
        };
        assert!(matches!(written, Err(WeightsError::Exists { .. })), "{written:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
    let nowhere = folder.path().join("missing/a.pth");
    assert!(matches!(write_torch(&nowhere, &Value::State(entries())), Err(WeightsError::Io { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn what_is_no_file_of_weights_is_refused_in_words() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let said = |path: &Path| read(path).unwrap_err().to_string();
    assert!(said(&path("missing.pth")).contains("missing.pth: No such file"), "{}", said(&path("missing.pth")));
    assert!(read(folder.path()).is_err());
    for (name, content) in [
        ("text.pth", &b"these are my weights"[..]),
        ("empty.pt", b""),
        ("text.safetensors", b"these are my weights"),
        ("empty.safetensors", b""),
        ("list.pth", b"\x80\x02](K\x01e."),
    ] {
        std::fs::write(path(name), content).unwrap();
        let said = said(&path(name));
        assert!(said.contains(name) && said.contains("torch.save"), "{name}: {said}");
    }
}

/// A pickle may ask for anything to be called; nothing is.
#[test]
fn nothing_is_executed() {
    let folder = tempdir().unwrap();
    let (path, made) = (folder.path().join("evil.pth"), folder.path().join("made"));
    let command = format!("touch {}", made.display());
    let mut pickle = b"\x80\x02}(X\x01\x00\x00\x00acposix\nsystem\n(X".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"tRu.");
    std::fs::write(&path, pickle).unwrap();
    assert!(read(&path).unwrap().is_empty());
    assert!(!made.exists());
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    let folder = tempdir().unwrap();
    for name in ["whole.safetensors", "whole.pth"] {
        let whole = folder.path().join(name);
        match name {
            "whole.pth" => write_torch(&whole, &Value::State(entries())).unwrap(),
            _ => write_safetensors(&whole, &entries()).unwrap(),
        }
        let bytes = std::fs::read(&whole).unwrap();
        let cut = folder.path().join(format!("cut-{name}"));
        for length in (0..bytes.len()).step_by(13).chain([bytes.len() - 1]) {
            let mut file = File::create(&cut).unwrap();
            file.write_all(&bytes[..length]).unwrap();
            assert!(read(&cut).is_err(), "{name}: {length} of {} bytes", bytes.len());
        }
    }
}

/// A view of stride 0 claims more than any file could hold.
#[test]
fn a_tensor_that_claims_too_much_is_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("claims.pth");
    let file = File::create(&path).unwrap();
    let mut archive = zip::ZipWriter::new(file);
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut pickle = b"\x80\x02}(".to_vec();
    for name in [b'a', b'b', b'c'] {
        pickle.extend([b'X', 1, 0, 0, 0, name]);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n");
        pickle.extend(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00(J");
        pickle.extend(2_000_000_000i32.to_le_bytes());
        pickle.extend(b"t(K\x00t\x89ccollections\nOrderedDict\n(tRtR");
    }
    pickle.extend(b"u.");
    for (name, bytes) in [("data.pkl", &pickle[..]), ("byteorder", b"little"), ("data/0", &[0; 4]), ("version", b"3\n")]
    {
        archive.start_file(format!("archive/{name}"), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    let said = read(&path).unwrap_err().to_string();
    assert!(said.contains("24000000000 bytes"), "{said}");
}
