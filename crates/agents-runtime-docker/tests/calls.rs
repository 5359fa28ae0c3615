//! How often the engine is asked: each call takes time of every run.

mod support;

use std::process::ExitCode;

use agents_core::{
    ContainerId, ContainerRuntime, ContainerRuntimeExt, CopyFromRequest, Mount, Process, ProvisionRequest, SessionId,
    StartRequest,
};
use agents_runtime_docker::{DockerConfig, DockerRuntime};
use futures_util::{FutureExt, TryStreamExt, future::BoxFuture};
use libtest_mimic::{Arguments, Trial};
use support::{Target, proxy::Proxy};

/// A whole run that leaves some files, and how many of them came out.
async fn run(runtime: &dyn ContainerRuntime, target: Target, files: usize) -> usize {
    let session = SessionId::generate();
    let name = ContainerId::new(format!("calls-{session}")).unwrap();
    let script = format!("i=0; while [ $i -lt {files} ]; do echo $i > /output/$i; i=$((i + 1)); done");
    let request = ProvisionRequest::new(session, name, target.image())
        .with_mounts([Mount::scratch("/output")])
        .with_process(Some(Process::new(["sh", "-c", &script])));
    let container = runtime.provision_verified(request).await.unwrap().handle;
    let session = runtime.start(StartRequest::new(container.clone())).await.unwrap();
    assert!(session.collect(100).await.unwrap().exit.is_success());
    let copy = CopyFromRequest::new(container.clone(), "/output").with_quiesce(true);
    let archive: Vec<_> = runtime.copy_from(copy).await.unwrap().try_collect().await.unwrap();
    let archive = archive.concat();
    let found = tar::Archive::new(&archive[..])
        .entries()
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().header().entry_type().is_file())
        .count();
    runtime.destroy(&container.id).await.unwrap();
    found
}

async fn twenty_artifacts_cost_no_more_than_one(target: Target) {
    let proxy = Proxy::new(&target.socket()).unwrap();
    let runtime = DockerRuntime::connect(DockerConfig::host(proxy.host())).await.unwrap();
    // The first run also brings the guest program to the engine.
    assert_eq!(run(&runtime, target, 0).await, 0);
    for files in [1, 20] {
        let before = proxy.requests().len();
        assert_eq!(run(&runtime, target, files).await, files);
        let calls = &proxy.requests()[before..];
        // The image, create, attach, events, start, inspect, remove: the files come over the attached connection.
        assert_eq!(calls.len(), 7, "{files} files: {calls:?}");
    }
}

async fn the_next_process_asks_for_the_version_alone(target: Target) {
    let mut proxy = Proxy::new(&target.socket()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let connect = async |proxy: &Proxy| {
        let before = proxy.requests().len();
        let config = DockerConfig::host(proxy.host());
        let runtime = DockerRuntime::connect_with_memory(config, folder.path().join("docker"))
            .await
            .unwrap();
        (runtime, proxy.requests()[before..].to_vec())
    };
    let asks = |calls: &[String], what: &str| calls.iter().any(|call| call.ends_with(what));
    let (first, calls) = connect(&proxy).await;
    assert!(asks(&calls, "/version") && asks(&calls, "/info"), "{calls:?}");
    let (second, calls) = connect(&proxy).await;
    assert_eq!(calls, ["GET /_ping"]);
    assert_eq!(first.capabilities(), second.capabilities());
    assert_eq!(run(&second, target, 1).await, 1);
    // Who wants to know for certain is told what holds now.
    let before = proxy.requests().len();
    assert!(second.check_availability().await.unwrap().available);
    assert!(asks(&proxy.requests()[before..], "/info"));
    // After a restart the engine may be another.
    proxy.go_away().await;
    proxy.come_back().unwrap();
    let (_, calls) = connect(&proxy).await;
    assert!(asks(&calls, "/info"), "{calls:?}");
}

type Scenario = fn(Target) -> BoxFuture<'static, ()>;

const SCENARIOS: [(&str, Scenario); 2] = [
    ("twenty_artifacts_cost_no_more_than_one", |target| {
        twenty_artifacts_cost_no_more_than_one(target).boxed()
    }),
    ("the_next_process_asks_for_the_version_alone", |target| {
        the_next_process_asks_for_the_version_alone(target).boxed()
    }),
];

fn main() -> ExitCode {
    let trials = support::engines().into_iter().flat_map(|target| {
        SCENARIOS.map(|(name, scenario)| {
            Trial::test(format!("{}::{name}", target.name()), move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()?;
                // A panic is the failure, which the harness catches.
                runtime.block_on(scenario(target));
                Ok(())
            })
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
