//! The GPUs of this machine, found as files: a driver need not be loaded for it.

/// Indices of the NVIDIA GPUs that this process may use.
#[must_use]
pub fn visible() -> Vec<u32> {
    let names: Vec<String> = std::fs::read_dir("/dev")
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    usable(&names, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
}

/// GPUs among the names of devices, narrowed to those that `visible` lists, as CUDA itself would narrow them: the list
/// ends at the first entry that is not an index of a GPU.
fn usable(devices: &[String], visible: Option<&str>) -> Vec<u32> {
    let number = |name: &String| name.strip_prefix("nvidia").and_then(|number| number.parse().ok());
    let mut present: Vec<u32> = devices.iter().filter_map(number).collect();
    present.sort_unstable();
    match visible {
        None => present,
        Some(list) => {
            list.split(',').map_while(|entry| entry.trim().parse().ok().filter(|gpu| present.contains(gpu))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_devices_are_gpus_and_the_environment_narrows_them() {
        let devices = ["nvidia1", "nvidia0", "nvidiactl", "nvidia-uvm", "null", "nvidia10"].map(str::to_owned);
        assert_eq!(usable(&devices, None), [0, 1, 10]);
        assert_eq!(usable(&devices, Some("10, 0")), [10, 0]);
        assert_eq!(usable(&devices, Some("1,7,0")), [1]);
        assert_eq!(usable(&devices, Some("")), [] as [u32; 0]);
        assert_eq!(usable(&[], Some("0")), [] as [u32; 0]);
    }
}
