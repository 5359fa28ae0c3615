#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod args;
mod artifacts;
mod audit;
mod build;
mod config;
mod context;
mod detach;
mod doctor;
mod envfile;
mod failure;
mod output;
mod policy;
mod progress;
mod request;
mod run;
mod sessions;
mod terminal;
mod units;

use clap::{CommandFactory, Parser};

use crate::{
    args::{Cli, Command, ConfigCommand, PolicyCommand},
    context::Context,
    failure::{CODE_USAGE, Outcome},
};

fn main() {
    // In the processes that build a sandbox this does not return.
    agents_sdk::init();
    let code = start();
    // Tasks that wait for a blocked reader must not keep the process, so it ends here and not by returning.
    terminal::exit(code)
}

fn start() -> u8 {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let supervise = arguments.get(1).is_some_and(|first| first == detach::SUPERVISE);
    if supervise {
        arguments.remove(1);
    }
    let mut cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return failure::report_usage(&error, &arguments),
    };
    cli.common.supervise = supervise;
    if cli.common.no_color {
        anstream::ColorChoice::Never.write_global();
    }
    if let Some(filter) = std::env::var_os("ISOLATED_AGENTS_LOG").filter(|filter| !filter.is_empty()) {
        start_log(&filter.to_string_lossy());
    }
    if let Command::Run(run) = &cli.command
        && (supervise || !run.detach)
        && run
            .adapters
            .runtime
            .as_deref()
            .is_none_or(|runtime| runtime == "native")
    {
        agents_sdk::prefork();
    }
    // One thread is enough for one session, and starts fastest.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error(&format!("cannot start the event loop: {error}"));
            return failure::CODE_REFUSED;
        }
    };
    let (json, is_run) = (cli.common.json, matches!(cli.command, Command::Run(_)));
    let code = match runtime.block_on(dispatch(cli)) {
        Ok(code) => code,
        Err(failure) => failure.report(json, is_run),
    };
    runtime.shutdown_background();
    code
}

async fn dispatch(cli: Cli) -> Outcome {
    let context = Context::new(cli.common);
    let outcome = perform(&context, cli.command).await;
    context.close().await;
    outcome
}

async fn perform(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::run(context, *args).await,
        Command::Ps(args) => sessions::ps(context, &args).await,
        Command::Exec(args) => sessions::exec(context, args).await,
        Command::Cp(args) => sessions::cp(context, &args).await,
        Command::Logs(args) => sessions::logs(context, &args).await,
        Command::Stats(args) => sessions::stats(context, &args).await,
        Command::Inspect(args) => sessions::inspect(context, &args).await,
        Command::Stop(args) => sessions::stop(context, &args).await,
        Command::Gc => sessions::gc(context).await,
        Command::Artifacts { command } => artifacts::run(context, &command).await,
        Command::Audit { command } => audit::run(context, command).await,
        Command::Build(args) => build::build(context, &args).await,
        Command::Policy { command } => match command {
            PolicyCommand::Check(args) => policy::check(context, &args).await,
        },
        Command::Config { command } => match command {
            ConfigCommand::Check => config::check(context),
            ConfigCommand::Show => config::show(context),
            ConfigCommand::Init(args) => config::init(context, &args),
        },
        Command::Doctor => doctor::doctor(context).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "agents", &mut script);
            output::bytes(&script)?;
            Ok(0)
        }
    }
}

fn start_log(filter: &str) {
    let filter = match tracing_subscriber::EnvFilter::try_new(filter) {
        Ok(filter) => filter,
        Err(error) => {
            output::error(&format!(
                "ISOLATED_AGENTS_LOG is not a filter such as debug or agents_session=trace: {error}"
            ));
            terminal::exit(CODE_USAGE)
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
