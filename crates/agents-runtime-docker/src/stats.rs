//! A container's counters, from the engine's own words for them.

use agents_core::ContainerStats;
use serde_json::Value;

const MIB: f64 = (1u64 << 20) as f64;

/// Reads the counters, but for the percentage, which takes two readings. `None` when the container does not run.
pub(crate) fn read(answer: &Value) -> Option<ContainerStats> {
    let number = |path: &str| answer.pointer(path).and_then(Value::as_u64);
    // An engine answers with zeros for what does not run, and a running process has used some time.
    let cpu = number("/cpu_stats/cpu_usage/total_usage").filter(|nanoseconds| *nanoseconds > 0)?;
    let mut stats = ContainerStats::default();
    stats.cpu_seconds = Some(cpu as f64 / 1e9);
    // Page cache is in it, and memory-backed files with it, as the kernel counts them against the limit.
    stats.memory_mb = number("/memory_stats/usage").unwrap_or(0) as f64 / MIB;
    stats.memory_limit_mb = number("/memory_stats/limit").unwrap_or(0) as f64 / MIB;
    stats.memory_peak_bytes = number("/memory_stats/max_usage").filter(|bytes| *bytes > 0);
    stats.pids = number("/pids_stats/current");
    let networks = answer.get("networks").and_then(Value::as_object);
    for network in networks.into_iter().flat_map(|networks| networks.values()) {
        let count = |name: &str| network.get(name).and_then(Value::as_u64).unwrap_or(0);
        stats.network_rx_bytes += count("rx_bytes");
        stats.network_tx_bytes += count("tx_bytes");
    }
    Some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_the_dead_have_none() {
        let answer = serde_json::json!({
            "pids_stats": {"current": 3},
            "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000u64}},
            "memory_stats": {"usage": 10 << 20, "max_usage": 20 << 20, "limit": 100 << 20, "stats": {"cache": 1}},
            "networks": {"eth0": {"rx_bytes": 5, "tx_bytes": 7}, "eth1": {"rx_bytes": 1}},
        });
        let stats = read(&answer).unwrap();
        assert_eq!(
            (stats.cpu_seconds, stats.memory_mb, stats.memory_limit_mb),
            (Some(1.5), 10.0, 100.0)
        );
        assert_eq!((stats.memory_peak_bytes, stats.pids), (Some(20 << 20), Some(3)));
        assert_eq!((stats.network_rx_bytes, stats.network_tx_bytes), (6, 7));
        assert_eq!(
            read(&serde_json::json!({"read": "0001-01-01T00:00:00Z", "memory_stats": {}})),
            None
        );
    }
}
