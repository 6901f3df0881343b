//! What a run runs on, and what it takes there.

use kernels::Backend;

/// What runs and how, on one device or on several: `2 x cuda NVIDIA H100 bf16`.
pub fn device_name<B: Backend>(backends: &[B]) -> String {
    let mut names: Vec<String> = backends.iter().map(B::name).collect();
    let count = names.len();
    names.dedup();
    if names.len() == 1 && count > 1 { format!("{count} x {}", names[0]) } else { names.join(" + ") }
}

/// The process's peak memory in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
