//! The GPUs that a process may use, found without a library: devices are files, and the environment narrows them. What each is and where it
//! is plugged in, the driver and the kernel write into files, too.

use std::path::Path;

/// A GPU as the driver and the kernel describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// As in `NVIDIA H100 80GB HBM3`.
    pub model: String,
    /// Where it is plugged in, as in `0000:17:00.0`.
    pub bus: String,
    /// Node of the memory that is near to it; `None` where the machine has one, or does not say.
    pub numa: Option<u32>,
    /// Lanes that it uses, and those that it could use.
    pub lanes: Option<(u32, u32)>,
    /// As in `32.0 GT/s`; less while it has nothing to do.
    pub speed: Option<String>,
}

/// All GPUs of this machine, by their places on the bus; `root` is where `/proc` and `/sys` are. None where no driver is loaded.
#[must_use]
pub fn described(root: &Path) -> Vec<Described> {
    let entries = std::fs::read_dir(root.join("proc/driver/nvidia/gpus")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    found.sort_unstable();
    let describe = |bus: String| {
        let information = std::fs::read_to_string(root.join("proc/driver/nvidia/gpus").join(&bus).join("information"));
        let information = information.unwrap_or_default();
        let model = information.lines().find_map(|line| line.strip_prefix("Model:")).unwrap_or("unknown").trim();
        let of = |name: &str| {
            let text = std::fs::read_to_string(root.join("sys/bus/pci/devices").join(&bus).join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        let lanes = |name: &str| of(name)?.parse::<u32>().ok();
        Described {
            model: model.to_owned(),
            numa: of("numa_node").and_then(|node| node.parse().ok()),
            lanes: lanes("current_link_width").zip(lanes("max_link_width")),
            speed: of("current_link_speed").map(|speed| speed.trim_end_matches(" PCIe").to_owned()),
            bus,
        }
    };
    found.into_iter().map(describe).collect()
}

/// The NVIDIA GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them: one for each place.
#[must_use]
pub fn visible() -> Vec<String> {
    let names: Vec<String> = std::fs::read_dir("/dev")
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    usable(&names, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
}

/// GPUs among the names of `/dev`, narrowed to those that `visible` lists, as CUDA itself would narrow them: by number or by the
/// name of a GPU or of a part of one; the list ends at the first entry that is neither. CUDA numbers those that it is given from 0 on: a
/// container may hold `nvidia4` alone, which is its GPU 0.
fn usable(devices: &[String], visible: Option<&str>) -> Vec<String> {
    let is_gpu = |name: &&String| name.strip_prefix("nvidia").is_some_and(|number| number.parse::<u32>().is_ok());
    let count = devices.iter().filter(is_gpu).count();
    let is_there = |entry: &str| {
        let by_name = count > 0 && ["GPU-", "MIG-"].iter().any(|kind| entry.starts_with(kind));
        by_name || entry.parse().is_ok_and(|number: usize| number < count)
    };
    match visible {
        None => (0..count).map(|number| number.to_string()).collect(),
        Some(list) => list.split(',').map(str::trim).take_while(|entry| is_there(entry)).map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_described_as_driver_and_kernel_do() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(described(root.path()), []);
        let information =
            "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 91\nGPU UUID: \t GPU-5a\nBus Location: \t 0000:17:00.0\n";
        write("proc/driver/nvidia/gpus/0000:17:00.0/information", information);
        for (name, text) in [
            ("numa_node", "1"),
            ("current_link_width", "8"),
            ("max_link_width", "16"),
            ("current_link_speed", "32.0 GT/s PCIe"),
        ] {
            write(&format!("sys/bus/pci/devices/0000:17:00.0/{name}"), &format!("{text}\n"));
        }
        // a machine with one node says -1, a virtual one nothing at all
        write("proc/driver/nvidia/gpus/0000:03:00.0/information", "Model: NVIDIA A2\n");
        write("sys/bus/pci/devices/0000:03:00.0/numa_node", "-1\n");
        let bare = Described { model: "NVIDIA A2".to_owned(), bus: "0000:03:00.0".to_owned(), ..Described::default() };
        let whole = Described {
            model: "NVIDIA H100 80GB HBM3".to_owned(),
            bus: "0000:17:00.0".to_owned(),
            numa: Some(1),
            lanes: Some((8, 16)),
            speed: Some("32.0 GT/s".to_owned()),
        };
        assert_eq!(described(root.path()), [bare, whole]);
    }

    #[test]
    fn only_numbered_devices_are_gpus_and_the_environment_narrows_them() {
        let devices = ["nvidia1", "nvidia0", "nvidiactl", "nvidia-uvm", "null", "nvidia10"].map(str::to_owned);
        let none: [&str; 0] = [];
        assert_eq!(usable(&devices, None), ["0", "1", "2"]);
        assert_eq!(usable(&devices, Some("2, 0")), ["2", "0"]);
        assert_eq!(usable(&devices, Some("1,7,0")), ["1"]);
        assert_eq!(usable(&devices, Some("GPU-8f2a, MIG-11/1/0,x")), ["GPU-8f2a", "MIG-11/1/0"]);
        assert_eq!(usable(&devices, Some("")), none);
        assert_eq!(usable(&[], Some("0,GPU-8f2a")), none);
        // a part of a machine
        assert_eq!(usable(&["nvidia4".to_owned(), "nvidia6".to_owned()], None), ["0", "1"]);
    }
}
