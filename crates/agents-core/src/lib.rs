#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod audit;
pub mod error;
pub mod exec;
pub mod factory;
pub mod guard;
pub mod ids;
pub mod info;
pub mod layer;
mod nearest;
pub mod policy;
pub mod recording;
pub mod runtime;
pub mod storage;
pub mod validator;

pub use audit::{AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, ChainLink, EventType, Severity};
pub use error::{Error, ErrorKind, Result, RetryStatus};
pub use exec::{
    Capture, Captured, ExecControl, ExecEvent, ExecInput, ExecOutput, ExecSession, Exit, KillReason, StartFailure,
};
pub use factory::{AdapterKind, BuildContext, Factory, SecretRef, SecretResolver};
pub use guard::{Admitted, Comparison, EffectiveMount, EffectiveState, Provisioned};
pub use ids::{AgentId, ArtifactName, ContainerId, SessionId};
pub use info::{AdapterInfo, Availability, Problem, Support};
pub use layer::{Adapters, Layer};
pub use nearest::nearest;
pub use policy::{NetworkPolicy, Policy, PolicyErrors, PolicySpec, capability, split_mount};
pub use recording::{AuditClass, AuditSettings, CommandRecord, EnvironmentRecord, Requirement};
pub use runtime::{
    BuildImageRequest, ByteStream, ContainerHandle, ContainerInfo, ContainerRuntime, ContainerRuntimeExt,
    ContainerState, ContainerStats, CopyFromRequest, CopyToRequest, ExecRequest, ImagePullPolicy, Mount, MountSource,
    NetworkConfig, Process, ProgressListener, ProvisionProgress, ProvisionRequest, ResourceLimits, RuntimeCapabilities,
    Secret, SecretBytes, SecurityConfig, StartRequest, User, VerifiedContainer,
};
pub use storage::{
    ArtifactInfo, Body, DeleteRequest, PresignPutRequest, PresignedPut, RetrieveRequest, Retrieved, StorageBackend,
    StorageBackendExt, StorageCapabilities, StoreRequest,
};
pub use validator::{
    ComplianceOutcome, ComplianceReport, ComplianceRule, Enforced, EnforcementContext, Finding, PolicyChange,
    PolicyValidator, ValidationResult,
};
