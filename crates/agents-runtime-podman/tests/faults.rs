//! What becomes of a container when the engine misbehaves: a typed error within its deadline, and nothing left behind.

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/variables.rs"]
mod variables;

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use agents_core::{
    ContainerHandle, ContainerId, ContainerRuntime, ContainerRuntimeExt, CopyFromRequest, Error, ErrorKind, ExecEvent,
    ExecRequest, ExecSession, Exit, ImagePullPolicy, Mount, Process, ProvisionRequest, SessionId, StartRequest,
};
use agents_runtime_podman::{PodmanConfig, PodmanRuntime};
use futures_util::StreamExt;
use libtest_mimic::{Arguments, Trial};

use proxy::{Fault, Proxy};

/// How long a call may take in these tests.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long what takes its deadline may take, clean-up and a slow machine included.
const IN_TIME: Duration = Duration::from_secs(12);

const LABEL: &str = "agents-podman-faults";

/// An engine behind a proxy, and the same engine without one.
struct Bench {
    proxy: Proxy,
    runtime: Arc<dyn ContainerRuntime>,
    direct: Arc<dyn ContainerRuntime>,
    image: String,
    mark: String,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new(url: &str, image: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("an open folder");
        let engine = PathBuf::from(url.strip_prefix("unix://").expect("a unix socket"));
        let proxy = Proxy::start(&engine);
        let open = async |url: String, seconds| {
            let config = PodmanConfig::default()
                .with_remote_url(url)
                .with_timeout_seconds(seconds);
            let runtime = PodmanRuntime::new(config, folder.path().join("podman")).expect("a runtime");
            runtime.learn().await;
            Arc::new(runtime) as Arc<dyn ContainerRuntime>
        };
        let direct = open(url.to_owned(), 30).await;
        // A look at an engine takes long on a busy machine, and has its place in no deadline here.
        let mut runtime = open(proxy.url(), 30).await;
        if runtime
            .check_availability()
            .await
            .is_ok_and(|availability| availability.available)
        {
            runtime = open(proxy.url(), DEADLINE.as_secs()).await;
        }
        Self {
            runtime,
            direct,
            proxy,
            image: image.to_owned(),
            mark: SessionId::generate().to_string(),
            _folder: folder,
        }
    }

    fn request(&self) -> ProvisionRequest {
        let session = SessionId::generate();
        let name = ContainerId::new(format!("faults-{session}")).expect("a name");
        ProvisionRequest::new(session, name, &self.image)
            .with_pull_policy(ImagePullPolicy::Never)
            .with_mounts([Mount::scratch("/output")])
            .with_labels([(LABEL.to_owned(), self.mark.clone())])
    }

    async fn idle(&self) -> ContainerHandle {
        let provisioned = self.runtime.provision_verified(self.request()).await;
        provisioned.unwrap_or_else(|error| panic!("{}", error.report())).handle
    }

    async fn exec(&self, container: &ContainerHandle, script: &str) -> Result<ExecSession, Error> {
        let process = Process::new(["sh", "-c", script]);
        self.runtime.exec(ExecRequest::new(container.clone(), process)).await
    }

    /// Fails unless nothing is left soon.
    async fn nothing_is_left(&self) {
        let labels: BTreeMap<_, _> = [(LABEL.to_owned(), self.mark.clone())].into();
        let begun = Instant::now();
        loop {
            let left = self.direct.list(&labels).await.expect("a list");
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "left behind: {left:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn destroy_all(&self) {
        let labels: BTreeMap<_, _> = [(LABEL.to_owned(), self.mark.clone())].into();
        for container in self.direct.list(&labels).await.expect("a list") {
            self.direct.destroy(&container.handle.id).await.expect("destroyed");
        }
    }

    /// A provision that must fail with this kind, in time, and leave nothing.
    async fn provision_fails(&self, kind: ErrorKind) -> Error {
        let begun = Instant::now();
        let error = match self.runtime.provision_verified(self.request()).await {
            Err(error) => error,
            Ok(_) => panic!("it was provisioned"),
        };
        assert_eq!(error.kind(), kind, "{}", error.report());
        assert!(begun.elapsed() < IN_TIME, "it took {:?}", begun.elapsed());
        assert!(self.proxy.is_spent(), "the fault was not met");
        self.nothing_is_left().await;
        error
    }
}

async fn first_line(session: &mut ExecSession) {
    loop {
        match session.next().await {
            Some(Ok(ExecEvent::Stdout(bytes))) if bytes.ends_with(b"\n") => return,
            Some(Ok(ExecEvent::Stderr(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn end_of(session: ExecSession) -> Exit {
    let collected = tokio::time::timeout(IN_TIME, session.collect(1000)).await;
    collected.expect("an end in time").expect("no error").exit
}

const SERVER_ERROR: Fault = Fault::Answer(500, r#"{"cause":"x","message":"something broke","response":500}"#);

/// The calls of a provision.
const STEPS: [(&str, &str, &str); 5] = [
    ("image", "GET", "images/*/json"),
    ("create", "POST", "containers/create"),
    ("attach", "POST", "containers/*/attach"),
    ("start", "POST", "containers/*/start"),
    ("inspect", "GET", "containers/*/json"),
];

fn faults() -> Vec<(&'static str, Fault, ErrorKind)> {
    vec![
        ("500", SERVER_ERROR, ErrorKind::Unexpected),
        ("hangs", Fault::Hang, ErrorKind::Timeout),
        ("closes", Fault::Close, ErrorKind::Unavailable),
        ("does_it_and_hangs", Fault::DoneAndHang, ErrorKind::Timeout),
        ("does_it_and_closes", Fault::DoneAndClosed, ErrorKind::Unavailable),
        ("is_cut", Fault::CutAfter(20), ErrorKind::Unavailable),
    ]
}

type Work = fn(Bench) -> futures_util::future::BoxFuture<'static, ()>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), (|bench| Box::pin($name(bench))) as Work)),*]
    };
}

async fn the_clean_up_goes_on_until_the_engine_takes_it(bench: Bench) {
    bench.proxy.inject("POST", "containers/*/attach", SERVER_ERROR, 1);
    bench.proxy.inject("DELETE", "containers/*", SERVER_ERROR, 3);
    let error = bench
        .runtime
        .provision_verified(bench.request())
        .await
        .expect_err("a fault");
    assert_eq!(error.kind(), ErrorKind::Unexpected, "{error}");
    bench.nothing_is_left().await;
    assert!(bench.proxy.is_spent());
}

async fn a_container_of_the_same_name_survives_an_attempt_that_was_not_heard_of(bench: Bench) {
    let request = bench.request();
    let handle = bench
        .runtime
        .provision_verified(request.clone())
        .await
        .expect("a container")
        .handle;
    bench.proxy.inject("POST", "containers/create", Fault::DoneAndClosed, 1);
    let error = bench.runtime.provision_verified(request).await.expect_err("a fault");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let session = bench.exec(&handle, "exit 0").await.expect("it is still there");
    assert_eq!(end_of(session).await, Exit::Exited { code: 0 });
    bench.runtime.destroy(&handle.id).await.expect("destroyed");
    bench.nothing_is_left().await;
}

async fn the_disk_of_the_engine_is_full(bench: Bench) {
    let full = r#"{"cause":"no space left on device","message":"creating container storage: mkdir /x: no space left on device","response":500}"#;
    bench
        .proxy
        .inject("POST", "containers/create", Fault::Answer(500, full), 1);
    bench.provision_fails(ErrorKind::ResourceExhausted).await;
}

async fn the_image_goes_away_meanwhile(bench: Bench) {
    let gone = r#"{"cause":"no such image","message":"37c2bcc7: image not known","response":404}"#;
    bench
        .proxy
        .inject("POST", "containers/create", Fault::Answer(404, gone), 1);
    bench.provision_fails(ErrorKind::NotFound).await;
}

async fn the_image_is_not_there(bench: Bench) {
    let mut request = bench.request();
    request.image = "localhost/agents-no-such-image:1".to_owned();
    let error = bench
        .runtime
        .provision_verified(request)
        .await
        .expect_err("no such image");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.message().contains("pull"), "{error}");
    bench.nothing_is_left().await;
}

async fn the_socket_is_gone_before(bench: Bench) {
    bench.proxy.stop();
    let begun = Instant::now();
    let error = bench
        .runtime
        .provision_verified(bench.request())
        .await
        .expect_err("no engine");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        error.is_temporary() && error.message().contains("podman.socket"),
        "{error}"
    );
    assert!(begun.elapsed() < DEADLINE);
    let availability = bench.runtime.check_availability().await.expect("an answer");
    assert!(
        !availability.available && !availability.problems[0].remedy.is_empty(),
        "{availability:?}"
    );
    bench.nothing_is_left().await;
}

async fn the_socket_is_gone_while_a_process_runs(mut bench: Bench) {
    let container = bench.idle().await;
    let mut session = bench
        .exec(
            &container,
            "echo ready; while :; do echo x >> /output/beat; sleep 0.05; done",
        )
        .await
        .expect("a process");
    first_line(&mut session).await;
    bench.proxy.stop();
    assert!(matches!(end_of(session).await, Exit::RuntimeLost { .. }));
    let error = bench.exec(&container, "true").await.expect_err("no engine");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    bench.proxy.restart();
    // The engine was restarted: the container is as it was, and what ran in it has ended.
    let size = async || {
        let session = bench.exec(&container, "wc -c < /output/beat").await.expect("a process");
        session.collect(100).await.expect("output").stdout.to_text()
    };
    let before = size().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(size().await, before, "the process lives on");
    bench.destroy_all().await;
}

async fn the_stream_of_the_main_process_is_cut(bench: Bench) {
    let process = Process::new(["sh", "-c", "echo ready; while :; do sleep 1; done"]);
    let request = bench.request().with_process(Some(process));
    let container = bench
        .runtime
        .provision_verified(request)
        .await
        .expect("a container")
        .handle;
    let mut session = bench
        .runtime
        .start(StartRequest::new(container.clone()))
        .await
        .expect("a process");
    first_line(&mut session).await;
    bench.proxy.cut();
    assert!(matches!(end_of(session).await, Exit::RuntimeLost { .. }));
    bench.runtime.destroy(&container.id).await.expect("destroyed");
    bench.nothing_is_left().await;
}

async fn somebody_else_removes_the_container(bench: Bench) {
    let container = bench.idle().await;
    let mut session = bench
        .exec(&container, "echo ready; sleep 100")
        .await
        .expect("a process");
    first_line(&mut session).await;
    bench.direct.destroy(&container.id).await.expect("destroyed");
    let exit = end_of(session).await;
    assert!(
        matches!(&exit, Exit::RuntimeLost { reason } if reason.contains("removed") || reason.contains("ended")),
        "{exit:?}"
    );
    let error = bench.exec(&container, "true").await.expect_err("no container");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let copied = bench
        .runtime
        .copy_from(CopyFromRequest::new(container.clone(), "/output"))
        .await;
    assert_eq!(copied.err().map(|error| error.kind()), Some(ErrorKind::NotFound));
    bench.runtime.destroy(&container.id).await.expect("it is gone");
}

async fn an_engine_that_hangs_costs_a_deadline(bench: Bench) {
    let container = bench.idle().await;
    let proxy = &bench.proxy;
    let late = |begun: Instant, error: Option<Error>| {
        let error = error.expect("a fault");
        assert_eq!(error.kind(), ErrorKind::Timeout, "{}", error.report());
        assert!(begun.elapsed() < IN_TIME);
        assert!(error.message().contains("timeout_seconds"), "{error}");
    };
    proxy.inject("GET", "containers/json", Fault::Hang, 1);
    late(Instant::now(), bench.runtime.list(&BTreeMap::new()).await.err());
    proxy.inject("GET", "containers/*/json", Fault::Hang, 1);
    late(Instant::now(), bench.runtime.inspect(&container.id).await.err());
    proxy.inject("GET", "containers/*/json", Fault::Hang, 1);
    late(Instant::now(), bench.runtime.stats(&container).await.err());
    for path in ["containers/*/exec", "exec/*/start"] {
        proxy.inject("POST", path, Fault::Hang, 1);
        late(Instant::now(), bench.exec(&container, "true").await.err());
    }
    proxy.inject("DELETE", "containers/*", Fault::Hang, 1);
    late(Instant::now(), bench.runtime.destroy(&container.id).await.err());
    assert!(proxy.is_spent());
    bench.runtime.destroy(&container.id).await.expect("destroyed");
    bench.nothing_is_left().await;
}

async fn a_copy_that_is_cut_says_so(bench: Bench) {
    let container = bench.idle().await;
    let session = bench
        .exec(&container, "dd if=/dev/zero of=/output/big bs=1048576 count=8")
        .await;
    assert_eq!(end_of(session.expect("a process")).await, Exit::Exited { code: 0 });
    bench.proxy.inject("POST", "exec/*/start", Fault::CutAfter(1 << 20), 1);
    let request = CopyFromRequest::new(container.clone(), "/output");
    let chunks: Vec<_> = bench
        .runtime
        .copy_from(request)
        .await
        .expect("a stream")
        .collect()
        .await;
    assert!(
        chunks.last().is_some_and(Result::is_err),
        "a stream that was cut must not look complete"
    );
    bench.destroy_all().await;
}

/// Each call takes time of every run: what a run has made comes over the connection that is there already.
async fn twenty_artifacts_cost_no_more_than_one(bench: Bench) {
    let mut counts = Vec::new();
    for files in [0, 1, 20] {
        let before = bench.proxy.calls().len();
        let script = format!("i=0; while [ $i -lt {files} ]; do echo $i > /output/$i; i=$((i + 1)); done");
        let request = bench.request().with_process(Some(Process::new(["sh", "-c", &script])));
        let container = bench
            .runtime
            .provision_verified(request)
            .await
            .expect("a container")
            .handle;
        let session = bench.runtime.start(StartRequest::new(container.clone())).await;
        assert_eq!(end_of(session.expect("a session")).await, Exit::Exited { code: 0 });
        let copy = CopyFromRequest::new(container.clone(), "/output").with_quiesce(true);
        let chunks: Vec<_> = bench.runtime.copy_from(copy).await.expect("a stream").collect().await;
        let archive: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.expect("a chunk")).collect();
        let entries = tar::Archive::new(&archive[..]).entries().expect("an archive").count();
        assert_eq!(entries, 1 + files, "the folder and its files");
        bench.runtime.destroy(&container.id).await.expect("a removal");
        let calls = bench.proxy.calls()[before..].to_vec();
        assert!(!calls.iter().any(|call| call.contains("exec")), "{calls:?}");
        counts.push(calls.len());
    }
    // The image, create, attach, start, inspect, remove.
    assert_eq!(counts, [6; 3]);
    bench.nothing_is_left().await;
}

fn main() -> ExitCode {
    let url = variables::variable("AGENTS_TEST_PODMAN", "podman");
    let image = variables::variable("AGENTS_TEST_ENGINE_IMAGE", "podman");
    let (url, image) = match (url, image) {
        (Ok(url), Ok(image)) => (url, image),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let trial = |name: String, work: Box<dyn Fn(Bench) -> futures_util::future::BoxFuture<'static, ()> + Send>| {
        let (url, image) = (url.clone(), image.clone());
        Trial::test(name, move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?;
            runtime.block_on(async {
                let bench = Bench::new(&url, &image).await;
                work(bench).await;
            });
            Ok(())
        })
    };
    let mut trials = Vec::new();
    for (step, method, path) in STEPS {
        for (how, fault, kind) in faults() {
            let work = move |bench: Bench| -> futures_util::future::BoxFuture<'static, ()> {
                Box::pin(async move {
                    bench.proxy.inject(method, path, fault, 1);
                    bench.provision_fails(kind).await;
                })
            };
            trials.push(trial(format!("{step}_{how}"), Box::new(work)));
        }
    }
    let cases = cases![
        the_clean_up_goes_on_until_the_engine_takes_it,
        a_container_of_the_same_name_survives_an_attempt_that_was_not_heard_of,
        the_disk_of_the_engine_is_full,
        the_image_goes_away_meanwhile,
        the_image_is_not_there,
        the_socket_is_gone_before,
        the_socket_is_gone_while_a_process_runs,
        the_stream_of_the_main_process_is_cut,
        somebody_else_removes_the_container,
        an_engine_that_hangs_costs_a_deadline,
        a_copy_that_is_cut_says_so,
        twenty_artifacts_cost_no_more_than_one,
    ];
    trials.extend(
        cases
            .into_iter()
            .map(|(name, work)| trial(name.to_owned(), Box::new(work))),
    );
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
