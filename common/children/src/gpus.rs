//! The GPUs that a process may use, found without a driver: devices are files, and the environment narrows them.

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
