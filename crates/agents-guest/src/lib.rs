#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod protocol;

#[cfg(feature = "host")]
mod host;
#[cfg(feature = "host")]
mod paths;
#[cfg(feature = "host")]
mod plan;
#[cfg(feature = "host")]
mod program_file;
#[cfg(feature = "host")]
mod report;

#[cfg(feature = "host")]
pub use {
    host::{Afterwards, Connection, Judge, Quiet, Recollection, SpawnRequest, StartOptions},
    paths::{MASKED_PATHS, READONLY_PATHS, SECRETS_DIR},
    plan::{
        CpuQuota, DEFAULT_SECCOMP_PROFILE, GVISOR, LABEL_GUEST, LABEL_IMAGE, LABEL_SESSION, Plan, PlannedMount,
        PlannedSource, check_engine_image, container_info,
    },
    program_file::{
        PROGRAM, PROGRAM_DIR, PROGRAM_MODE, PROGRAM_MODE_GVISOR, PROGRAM_PATH, PROGRAM_SHA256, connect_command,
        exec_command, init_command, program_archive, read_command, report_command, status_command, write_command,
    },
    report::{Report, own_namespaces},
};
