//! Places in a container.

/// The folder of the secrets, memory-backed.
pub const SECRETS_DIR: &str = "/run/secrets";

/// What a container does not see, for an engine's masked paths: the native runtime's list, which has more of what concerns
/// the whole machine than the engines' own defaults.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/config.gz",
    "/proc/driver",
    "/proc/dynamic_debug",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/pagetypeinfo",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/sysvipc",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];

/// What a container cannot write to although the kernel would let it, for an engine's read-only paths. A file that is only
/// ever written is among them: in the place of what they mask, some runtimes show a `/dev/null` that can be written to.
pub const READONLY_PATHS: &[&str] = &["/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_masked_or_read_only() {
        assert!(MASKED_PATHS.is_sorted());
        assert!(READONLY_PATHS.iter().all(|path| !MASKED_PATHS.contains(path)));
    }
}
