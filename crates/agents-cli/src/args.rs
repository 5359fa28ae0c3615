//! What can be written on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::artifacts::args::ArtifactsCommand;
use crate::audit::args::AuditCommand;
use crate::units::{Limit, parse_cores, parse_count, parse_mebibytes, parse_seconds};

/// Where the help of a command puts what every command takes.
const GLOBAL: &str = "Options of every command";

/// Run untrusted agents in isolation
#[derive(Debug, Parser)]
#[command(name = "agents", version, disable_help_subcommand = false, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Print JSON on standard output, and nothing else there
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(crate) json: bool,
    /// Where sessions, the default audit log and the default store live
    /// [default: $XDG_STATE_HOME/isolated-agents]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// The configuration file [default: isolated_agents_config.yaml here, then in the user's folder]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Say more on standard error
    #[arg(short, long, global = true, help_heading = GLOBAL, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
    /// Say nothing on standard error but errors
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub(crate) quiet: bool,
    /// No colour, even on a terminal
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(crate) no_color: bool,
    /// This process owns a detached session.
    #[arg(skip)]
    pub(crate) supervise: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an agent
    Run(Box<RunArgs>),
    /// List sessions
    Ps(PsArgs),
    /// Run a further command in a running session
    Exec(ExecArgs),
    /// Copy files into or out of a running session
    Cp(CpArgs),
    /// Print a session's output
    Logs(LogsArgs),
    /// Print what a running session uses
    Stats(SessionArg),
    /// Print all that is known of a session
    Inspect(SessionArg),
    /// Stop running sessions; their artifacts are still collected
    Stop(StopArgs),
    /// Remove what crashed sessions left behind
    Gc,
    /// List, read, add, remove, copy and check artifacts
    Artifacts {
        #[command(subcommand)]
        command: ArtifactsCommand,
    },
    /// Read, verify, export and show the audit trail
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Build an image from a folder with a Containerfile, with the runtime's own builder
    Build(BuildArgs),
    /// Check policies
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Check, show or begin a configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Check every configured adapter and this host, and say what to do
    Doctor,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The adapters of one command.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Adapters {
    /// Run it here: a type of runtime, such as native
    #[arg(long, value_name = "TYPE")]
    pub(crate) runtime: Option<String>,
    /// Keep artifacts there: a type of storage, such as local
    #[arg(long, value_name = "TYPE")]
    pub(crate) storage: Option<String>,
    /// Keep the audit trail there: a type of logger, such as file
    #[arg(long, value_name = "TYPE")]
    pub(crate) audit: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct BuildArgs {
    /// The folder
    #[arg(value_name = "DIR")]
    pub(crate) context: PathBuf,
    /// The name that the image gets, as name:tag
    #[arg(short, long, value_name = "NAME")]
    pub(crate) tag: String,
    /// The recipe, relative to the folder [default: Containerfile, else Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Let the recipe's steps use the network
    #[arg(long)]
    pub(crate) network: bool,
    /// Build it there: a type of runtime, such as podman
    #[arg(long, value_name = "TYPE")]
    pub(crate) runtime: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The image; with the embedded runtime also `host`, a folder, an archive or an OCI layout
    /// [default: the policy's base_image, else host]
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// When to fetch the image
    #[arg(long, value_name = "WHEN")]
    pub(crate) pull: Option<Pull>,
    /// The folder that becomes /workspace, read-write; without it an empty one
    #[arg(long, value_name = "DIR")]
    pub(crate) workspace: Option<PathBuf>,
    /// Put the artifacts here, besides storing them
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Memory: 512 (MiB), 2g, or unlimited
    #[arg(short, long, value_name = "MIB", value_parser = parse_mebibytes, allow_negative_numbers = true)]
    pub(crate) memory: Option<Limit<u64>>,
    /// CPU time in cores, or unlimited
    #[arg(long, visible_alias = "cpu", value_name = "N", value_parser = parse_cores, allow_negative_numbers = true)]
    pub(crate) cpus: Option<Limit<f64>>,
    /// Processes and threads, or unlimited
    #[arg(long, visible_alias = "pids-limit", value_name = "N", value_parser = parse_count, allow_negative_numbers = true)]
    pub(crate) pids: Option<Limit<u64>>,
    /// Writable space: 512 (MiB), 2g, or unlimited
    #[arg(long, value_name = "MIB", value_parser = parse_mebibytes, allow_negative_numbers = true)]
    pub(crate) disk: Option<Limit<u64>>,
    /// End it after this time: 30 (seconds), 30s, 5m, 1h, or unlimited
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, allow_negative_numbers = true)]
    pub(crate) timeout: Option<Limit<f64>>,
    /// Set a variable, K=V, or forward one, K
    #[arg(short, long = "env", value_name = "K[=V]")]
    pub(crate) env: Vec<String>,
    /// Read variables from a file, a K=V or a K a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// A secret at /run/secrets/NAME: NAME=env:VAR or NAME=file:PATH
    #[arg(long, value_name = "NAME=REF")]
    pub(crate) secret: Vec<String>,
    /// The network; only `disabled`, the default: say with --allow what may be reached
    #[arg(long, value_name = "disabled", conflicts_with = "allow")]
    pub(crate) network: Option<Network>,
    /// Allow connections to HOST:PORT, *.DOMAIN:PORT or CIDR:PORT
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) allow: Vec<String>,
    /// A further mount, SRC:DST[:ro|:rw]; read-only unless :rw
    #[arg(long, value_name = "SRC:DST[:rw]")]
    pub(crate) mount: Vec<String>,
    /// Run as this user, UID:GID
    #[arg(short, long, value_name = "UID:GID")]
    pub(crate) user: Option<String>,
    /// Standard input from a file
    #[arg(long, value_name = "FILE", conflicts_with = "interactive")]
    pub(crate) stdin: Option<PathBuf>,
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// A policy file in YAML, TOML or JSON; flags override its fields
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// Workspace and policy of this agent of the configuration's `agents`
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
    /// The agent's name in records [default: the command's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) adapters: Adapters,
    /// Run in the background: print the session's id and return
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub(crate) detach: bool,
    /// The command and its arguments, passed as they are
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// No network at all
    #[value(alias = "none")]
    Disabled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    /// Ask the registry each time
    Always,
    /// Only when it is not here
    Missing,
    /// Never
    Never,
}

#[derive(Args, Debug)]
pub(crate) struct PsArgs {
    /// Those that have ended too
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Args, Debug)]
pub(crate) struct SessionArg {
    /// The session's id, or the beginning of it
    pub(crate) session: String,
}

#[derive(Args, Debug)]
pub(crate) struct StopArgs {
    /// The sessions' ids, or the beginnings of them
    #[arg(required = true, value_name = "SESSION")]
    pub(crate) sessions: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The session's id, or the beginning of it
    pub(crate) session: String,
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable, K=V, or forward one, K
    #[arg(short, long = "env", value_name = "K[=V]")]
    pub(crate) env: Vec<String>,
    /// The working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// End it after this time: 30 (seconds), 30s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, allow_negative_numbers = true)]
    pub(crate) timeout: Option<Limit<f64>>,
    /// The command and its arguments, passed as they are
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct CpArgs {
    /// A path, or SESSION:PATH
    pub(crate) source: String,
    /// A path, or SESSION:PATH
    pub(crate) destination: String,
}

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// The session's id, or the beginning of it
    pub(crate) session: String,
    /// Go on until the session ends
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Print everything that is wrong with a policy, and what would be narrowed
    Check(PolicyCheckArgs),
}

#[derive(Args, Debug)]
pub(crate) struct PolicyCheckArgs {
    /// The policy in YAML, TOML or JSON
    pub(crate) file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the configuration without touching anything
    Check,
    /// Print what is in force, and where each value comes from
    Show,
    /// Write a configuration to begin with
    Init(ConfigInitArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ConfigInitArgs {
    /// The file
    #[arg(default_value = "isolated_agents_config.yaml")]
    pub(crate) file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) force: bool,
}
