//! What goes wrong between here and the engine: each fault ends in a typed error within its deadline, and leaves no container
//! and no volume behind.

mod support;

use std::{
    collections::BTreeMap,
    future::Future,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use agents_core::{
    ContainerHandle, ContainerId, ContainerRuntime, ContainerRuntimeExt, ContainerState, CopyFromRequest, Error,
    ErrorKind, ExecEvent, ExecRequest, ExecSession, Exit, ImagePullPolicy, Mount, Process, ProvisionRequest, SessionId,
    StartRequest,
};
use agents_runtime_docker::{DockerConfig, DockerRuntime};
use futures_util::{StreamExt, TryStreamExt};
use libtest_mimic::{Arguments, Trial};
use support::{
    Target,
    proxy::{Fault, Proxy, request},
};

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// How long an operation of a few calls may take, with the clean-up, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(20);

const LABEL: &str = "agents-faults";

/// One engine behind a proxy, and a place of its own on it.
struct Place {
    target: Target,
    proxy: Proxy,
    runtime: Arc<dyn ContainerRuntime>,
    direct: Arc<dyn ContainerRuntime>,
    labels: BTreeMap<String, String>,
}

impl Place {
    async fn new(target: Target) -> Self {
        let proxy = Proxy::new(&target.socket()).unwrap();
        Self {
            runtime: runtime(&proxy.host()).await,
            direct: runtime(&format!("unix://{}", target.socket().display())).await,
            labels: [(LABEL.to_owned(), SessionId::generate().to_string())].into(),
            target,
            proxy,
        }
    }

    fn request(&self, process: Option<&str>) -> ProvisionRequest {
        let session = SessionId::generate();
        let name = ContainerId::new(format!("faults-{session}")).unwrap();
        ProvisionRequest::new(session, name, self.target.image())
            .with_mounts([Mount::scratch("/output")])
            .with_labels(self.labels.clone())
            .with_process(process.map(|script| Process::new(["sh", "-c", script])))
    }

    async fn make(&self, process: Option<&str>) -> ContainerHandle {
        let made = self.runtime.provision_verified(self.request(process)).await;
        made.unwrap_or_else(|error| panic!("{}", error.report())).handle
    }

    async fn started(&self, script: &str) -> (ContainerHandle, ExecSession) {
        let container = self.make(Some(script)).await;
        let mut session = self.runtime.start(StartRequest::new(container.clone())).await.unwrap();
        let first = session.next().await;
        assert!(matches!(first, Some(Ok(ExecEvent::Stdout(_)))), "{first:?}");
        (container, session)
    }

    /// Waits until nothing of this place is on the engine any more.
    async fn is_empty(&self) {
        let begun = Instant::now();
        loop {
            let left = self.direct.list(&self.labels).await.unwrap();
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "left behind: {left:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Past the adapter.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, body) = request(&self.target.socket(), method, path, body.as_bytes())
            .await
            .unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

async fn runtime(host: &str) -> Arc<dyn ContainerRuntime> {
    let config = DockerConfig::host(host).with_timeout(DEADLINE);
    Arc::new(DockerRuntime::connect(config).await.unwrap())
}

/// What must end soon.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, what).await {
        Ok(value) => value,
        Err(_) => panic!("it did not end within {PATIENCE:?}"),
    }
}

async fn ending(mut session: ExecSession) -> Exit {
    let mut last = None;
    while let Some(event) = soon(session.next()).await {
        last = Some(event);
    }
    match last {
        Some(Ok(ExecEvent::Exit(exit))) => exit,
        other => panic!("the stream ended with {other:?}"),
    }
}

fn typed(error: &Error) {
    let kinds = [ErrorKind::Unavailable, ErrorKind::Timeout];
    assert!(kinds.contains(&error.kind()), "{:?}", error);
    assert!(error.is_temporary(), "{error:?}");
    assert!(!error.message().contains('\n'));
}

const BROKEN: &str = r#"{"message":"something is broken"}"#;

fn faults() -> Vec<Fault> {
    vec![
        Fault::Answer(500, BROKEN),
        Fault::Hang,
        Fault::HangAfter,
        Fault::Cut,
        Fault::LoseAnswer,
        Fault::CutAfter(20),
    ]
}

/// Provisions with each fault at one step.
async fn provision_with_faults_at(place: Place, method: &'static str, path: &'static str) {
    // The guest program is on the engine, and its own steps do not matter.
    place.runtime.destroy(&place.make(None).await.id).await.unwrap();
    for fault in faults() {
        place.proxy.fail(method, path, fault.clone());
        let request = place.request(Some("true"));
        let name = request.name.clone();
        let begun = Instant::now();
        let made = soon(place.runtime.provision_verified(request)).await;
        let error = made.map(|_| ()).expect_err(&format!("{fault:?} went unnoticed"));
        typed(&error);
        assert!(begun.elapsed() < PATIENCE, "{fault:?}: {:?}", begun.elapsed());
        assert!(
            place
                .proxy
                .requests()
                .iter()
                .any(|seen| seen.starts_with(method) && seen.ends_with(path)),
            "the step was never taken: {:?}",
            place.proxy.requests()
        );
        place.proxy.heal();
        place.is_empty().await;
        let gone = place.runtime.inspect(&name).await;
        assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
    }
    // It works again, without anything being made anew.
    place.runtime.destroy(&place.make(None).await.id).await.unwrap();
}

async fn faults_at_the_image(place: Place) {
    provision_with_faults_at(place, "GET", "agents-test:latest/json").await;
}

async fn faults_at_create(place: Place) {
    provision_with_faults_at(place, "POST", "/containers/create").await;
}

async fn faults_at_attach(place: Place) {
    provision_with_faults_at(place, "POST", "/attach").await;
}

async fn faults_at_start(place: Place) {
    provision_with_faults_at(place, "POST", "/start").await;
}

async fn faults_at_the_events(place: Place) {
    for fault in [Fault::Answer(500, BROKEN), Fault::Hang, Fault::Cut, Fault::CutAfter(5)] {
        place.proxy.fail("GET", "/events", fault);
        let made = soon(place.runtime.provision_verified(place.request(Some("true")))).await;
        typed(&made.map(|_| ()).unwrap_err());
        place.proxy.heal();
        place.is_empty().await;
    }
}

async fn faults_at_inspect(place: Place) {
    let container = place.make(None).await;
    for fault in faults() {
        let path: &'static str = "/json";
        place.proxy.fail("GET", path, fault);
        let made = soon(place.runtime.provision_verified(place.request(Some("true")))).await;
        typed(&made.map(|_| ()).unwrap_err());
        let inspected = soon(place.runtime.inspect(&container.id)).await;
        typed(&inspected.map(|_| ()).unwrap_err());
        place.proxy.heal();
    }
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn answers_that_cannot_be_read(place: Place) {
    let container = place.make(None).await;
    place.proxy.fail("GET", "/json", Fault::Answer(200, "<html>"));
    place.proxy.fail("GET", "/stats", Fault::Answer(200, "[]x"));
    let inspected = place.runtime.inspect(&container.id).await.unwrap_err();
    let stats = place.runtime.stats(&container).await.unwrap_err();
    let listed = place.runtime.list(&place.labels).await.unwrap_err();
    for error in [inspected, stats, listed] {
        assert_eq!(error.kind(), ErrorKind::DataInvalid, "{error:?}");
    }
    place.proxy.heal();
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn the_socket_is_gone_before(mut place: Place) {
    place.proxy.go_away().await;
    // Both a runtime that has seen the engine and one that never has.
    let never = runtime("unix:///run/agents-no-such-engine.sock").await;
    for runtime in [&place.runtime, &never] {
        let made = soon(runtime.provision_verified(place.request(None))).await;
        typed(&made.map(|_| ()).unwrap_err());
        assert!(soon(runtime.list(&place.labels)).await.is_err());
    }
    let availability = never.check_availability().await.unwrap();
    assert!(!availability.available);
    assert!(
        availability.problems[0].remedy.contains("DOCKER_HOST"),
        "{availability:?}"
    );
    place.proxy.come_back().unwrap();
    place.runtime.destroy(&place.make(None).await.id).await.unwrap();
    place.is_empty().await;
}

async fn the_socket_goes_while_a_process_runs(mut place: Place) {
    let (container, session) = place.started("echo ready; sleep 60").await;
    place.proxy.go_away().await;
    let exit = ending(session).await;
    assert!(matches!(exit, Exit::RuntimeLost { .. }), "{exit:?}");
    typed(&soon(place.runtime.destroy(&container.id)).await.unwrap_err());
    place.proxy.come_back().unwrap();
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn the_engine_restarts_while_a_process_runs(mut place: Place) {
    let (container, session) = place.started("echo ready; sleep 60").await;
    place.proxy.go_away().await;
    // An engine without live restore ends its containers when it goes.
    place
        .ask("POST", &format!("/containers/{}/kill", container.id), "")
        .await;
    place.proxy.come_back().unwrap();
    let exit = ending(session).await;
    assert!(matches!(exit, Exit::RuntimeLost { .. }), "{exit:?}");
    let info = place.runtime.inspect(&container.id).await.unwrap();
    assert_eq!(info.state, ContainerState::Exited);
    let exec = ExecRequest::new(container.clone(), Process::new(["true"]));
    assert_eq!(place.runtime.exec(exec).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert!(place.runtime.stats(&container).await.is_ok());
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn a_stream_is_cut_while_a_process_runs(place: Place) {
    // The attached stream ends after a while, and the rest of the engine is well.
    place.proxy.fail("POST", "/attach", Fault::CutAfter(200_000));
    let container = place.make(Some("while :; do echo 0123456789; done")).await;
    let session = place.runtime.start(StartRequest::new(container.clone())).await.unwrap();
    let exit = ending(session).await;
    assert!(matches!(exit, Exit::RuntimeLost { .. }), "{exit:?}");
    // What ran is not left to run on its own.
    let info = place.direct.inspect(&container.id).await.unwrap();
    assert_eq!(info.state, ContainerState::Exited);
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn an_exec_that_goes_wrong(place: Place) {
    let container = place.make(None).await;
    let exec = || ExecRequest::new(container.clone(), Process::new(["true"]));
    for (path, fault) in [
        ("/exec", Fault::Answer(500, BROKEN)),
        ("/exec", Fault::Hang),
        ("/exec", Fault::LoseAnswer),
        ("/start", Fault::Hang),
        ("/start", Fault::Cut),
    ] {
        place.proxy.fail("POST", path, fault);
        typed(&soon(place.runtime.exec(exec())).await.unwrap_err());
        place.proxy.heal();
    }
    // The connection breaks once it runs.
    place.proxy.fail("POST", "/start", Fault::CutAfter(400));
    let session = soon(place.runtime.exec(exec())).await;
    if let Ok(session) = session {
        let exit = ending(session).await;
        assert!(
            matches!(exit, Exit::RuntimeLost { .. } | Exit::Exited { code: 0 }),
            "{exit:?}"
        );
    }
    place.proxy.heal();
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn a_copy_that_is_cut_is_no_shorter_copy(place: Place) {
    let container = place.make(None).await;
    let script = Process::new(["dd", "if=/dev/zero", "of=/output/big", "bs=1048576", "count=4"]);
    let session = place
        .runtime
        .exec(ExecRequest::new(container.clone(), script))
        .await
        .unwrap();
    assert!(session.collect(1000).await.unwrap().exit.is_success());
    place.proxy.fail("POST", "/start", Fault::CutAfter(1_000_000));
    let copy = place
        .runtime
        .copy_from(CopyFromRequest::new(container.clone(), "/output"))
        .await
        .unwrap();
    let copied: Result<Vec<_>, _> = soon(copy.try_collect()).await;
    assert!(copied.is_err(), "a part passed for the whole");
    place.proxy.heal();
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn somebody_else_removes_the_container(place: Place) {
    let (container, session) = place.started("echo ready; sleep 60").await;
    place
        .ask("DELETE", &format!("/containers/{}?force=1", container.id), "")
        .await;
    let exit = ending(session).await;
    let Exit::RuntimeLost { reason } = exit else {
        panic!("{exit:?}")
    };
    assert!(reason.contains("removed") || reason.contains("ended"), "{reason}");
    for error in [
        place.runtime.inspect(&container.id).await.map(|_| ()).unwrap_err(),
        place.runtime.stats(&container).await.map(|_| ()).unwrap_err(),
        place
            .runtime
            .copy_from(CopyFromRequest::new(container.clone(), "/output"))
            .await
            .map(|_| ())
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    }
    place.runtime.destroy(&container.id).await.unwrap();
}

async fn somebody_else_removes_it_while_it_is_made(place: Place) {
    for step in ["/attach", "/start"] {
        let request = place.request(Some("true"));
        let remove = format!("/containers/{}?force=1", request.name);
        place.proxy.fail("POST", step, Fault::After("DELETE", remove));
        let error = soon(place.runtime.provision_verified(request))
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        place.proxy.heal();
    }
    place.is_empty().await;
}

async fn somebody_else_kills_the_container(place: Place) {
    let (container, session) = place.started("echo ready; sleep 60").await;
    place
        .ask("POST", &format!("/containers/{}/kill", container.id), "")
        .await;
    let exit = ending(session).await;
    // Killed is not out of memory.
    assert!(matches!(exit, Exit::RuntimeLost { .. }), "{exit:?}");
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn the_image_is_removed_meanwhile(place: Place) {
    let tag = SessionId::generate();
    let image = format!("localhost/agents-faults:{tag}");
    let (status, said) = place
        .ask(
            "POST",
            &format!("/containers/create?name=faults-image-{tag}"),
            &format!(r#"{{"Image":"{}","Cmd":["x"]}}"#, place.target.image()),
        )
        .await;
    assert_eq!(status, 201, "{said}");
    let commit = format!("/commit?container=faults-image-{tag}&repo=localhost/agents-faults&tag={tag}");
    let (status, said) = place
        .ask("POST", &commit, r#"{"Labels":{"agents-faults-image":"x"}}"#)
        .await;
    assert_eq!(status, 201, "{said}");
    place
        .ask("DELETE", &format!("/containers/faults-image-{tag}"), "")
        .await;
    let mut request = place.request(None).with_pull_policy(ImagePullPolicy::Never);
    request.image.clone_from(&image);
    place.proxy.fail(
        "POST",
        "/containers/create",
        Fault::After("DELETE", format!("/images/{image}")),
    );
    let error = soon(place.runtime.provision_verified(request.clone()))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    place.proxy.heal();
    request.name = place.request(None).name;
    let error = soon(place.runtime.provision_verified(request))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert!(error.message().contains(&image), "{error}");
    place.is_empty().await;
}

async fn a_registry_that_cannot_be_reached(place: Place) {
    let mut request = place.request(None);
    // Nobody listens on the port that is kept for this.
    request.image = "localhost:9/agents/none:1".to_owned();
    let error = soon(place.runtime.provision_verified(request))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(
        error.is_temporary() && error.message().contains("localhost:9/agents/none"),
        "{error:?}"
    );
    place.is_empty().await;
}

async fn the_disk_of_the_engine_is_full(place: Place) {
    let full = r#"{"message":"write /var/lib/docker/x: no space left on device"}"#;
    place.proxy.fail("POST", "/containers/create", Fault::Answer(500, full));
    let error = soon(place.runtime.provision_verified(place.request(None)))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error:?}");
    place.proxy.heal();
    place.is_empty().await;
}

async fn a_destroy_that_fails_can_be_repeated(place: Place) {
    let container = place.make(None).await;
    for fault in [Fault::Answer(500, BROKEN), Fault::Hang, Fault::LoseAnswer] {
        place.proxy.fail("DELETE", "", fault);
        typed(&soon(place.runtime.destroy(&container.id)).await.unwrap_err());
        place.proxy.heal();
    }
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn the_guest_program_is_copied_again(place: Place) {
    // The engine says that it has no volumes, so that a runtime begins anew.
    for fault in [Fault::Answer(500, BROKEN), Fault::Cut, Fault::Hang] {
        place.proxy.fail(
            "GET",
            "/volumes",
            Fault::Answer(200, r#"{"Volumes":null,"Warnings":null}"#),
        );
        place.proxy.fail("PUT", "/archive", fault);
        let fresh = runtime(&place.proxy.host()).await;
        let error = soon(fresh.provision_verified(place.request(None)))
            .await
            .map(|_| ())
            .unwrap_err();
        typed(&error);
        place.proxy.heal();
        place.runtime.destroy(&place.make(None).await.id).await.unwrap();
    }
    let (_, said) = place
        .ask(
            "GET",
            "/containers/json?all=1&filters=%7B%22name%22%3A%5B%22-fill%22%5D%7D",
            "",
        )
        .await;
    assert_eq!(said.trim(), "[]", "what fills the volume was left behind");
    place.is_empty().await;
}

async fn a_volume_that_somebody_removes_is_made_again(place: Place) {
    let container = place.make(None).await;
    let (_, inspected) = place
        .ask("GET", &format!("/containers/{}/json", container.id), "")
        .await;
    place.runtime.destroy(&container.id).await.unwrap();
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let mounts = inspected["Mounts"].as_array().unwrap();
    let hosts = mounts
        .iter()
        .find(|mount| mount["Destination"] == "/etc/hosts")
        .unwrap();
    let hosts = hosts["Source"].as_str().unwrap();
    let looked = |seen: &[String]| seen.iter().filter(|seen| seen.ends_with("/volumes")).count();
    let before = looked(&place.proxy.requests());
    // Others use the volume, so only the engine's word is changed.
    let gone = r#"{"message":"invalid mount config for type \"bind\": bind source path does not exist: HOSTS"}"#;
    let answer: &'static str = Box::leak(gone.replace("HOSTS", hosts).into_boxed_str());
    place
        .proxy
        .fail_once("POST", "/containers/create", Fault::Answer(400, answer));
    let container = place.make(None).await;
    assert!(
        looked(&place.proxy.requests()) > before,
        "nobody looked for the volume again"
    );
    place.runtime.destroy(&container.id).await.unwrap();
    // An engine that cannot mount from there makes the namespace itself.
    place
        .proxy
        .fail_once("POST", "/containers/create", Fault::Answer(400, answer));
    place
        .proxy
        .fail_once("POST", "/containers/create", Fault::Answer(400, answer));
    let container = place.make(None).await;
    let exec = ExecRequest::new(
        container.clone(),
        Process::new(["grep", "-c", "localhost", "/etc/hosts"]),
    );
    let output = place.runtime.exec(exec).await.unwrap().collect(100).await.unwrap();
    assert!(output.exit.is_success(), "{output:?}");
    place.runtime.destroy(&container.id).await.unwrap();
    place.is_empty().await;
}

async fn an_image_with_volumes_leaves_none(place: Place) {
    let mut request = place.request(None);
    request.image = place.target.configured_image();
    let name = request.name.clone();
    let made = place.runtime.provision_verified(request).await;
    let container = made.unwrap_or_else(|error| panic!("{}", error.report())).handle;
    let script = "id -u; echo $IMAGE_VARIABLE; ! touch /volume/x 2>/dev/null && echo read-only";
    let process = Process::new(["sh", "-c", script]);
    let session = place
        .runtime
        .exec(ExecRequest::new(container.clone(), process))
        .await
        .unwrap();
    let output = session.collect(1000).await.unwrap();
    let text = output.stdout.to_text();
    let mut lines = text.lines();
    assert!(
        lines
            .next()
            .is_some_and(|uid| uid.parse::<u32>().is_ok_and(|uid| uid > 0)),
        "{output:?}"
    );
    assert_eq!(lines.collect::<Vec<_>>(), ["of-the-image", "read-only"]);
    let (_, inspected) = place.ask("GET", &format!("/containers/{name}/json"), "").await;
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let names: Vec<_> = inspected["Mounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|mount| mount["Name"].as_str())
        .map(str::to_owned)
        .collect();
    place.runtime.destroy(&container.id).await.unwrap();
    for volume in names {
        // That of the guest program belongs to all containers.
        let expected = if volume.starts_with("agents-guest-") { 200 } else { 404 };
        assert_eq!(
            place.ask("GET", &format!("/volumes/{volume}"), "").await.0,
            expected,
            "{volume}"
        );
    }
    place.is_empty().await;
}

async fn a_container_of_somebody_else_is_left_alone(place: Place) {
    let tag = SessionId::generate();
    let name = format!("faults-foreign-{tag}");
    let body = format!(r#"{{"Image":"{}","Cmd":["sleep","60"]}}"#, place.target.image());
    let (status, said) = place
        .ask("POST", &format!("/containers/create?name={name}"), &body)
        .await;
    assert_eq!(status, 201, "{said}");
    let id: serde_json::Value = serde_json::from_str(&said).unwrap();
    let id = id["Id"].as_str().unwrap();
    // By its name, and by the beginning of its identifier.
    for text in [&name, &id[..12], id] {
        let other = ContainerId::new(text).unwrap();
        assert_eq!(
            place.runtime.inspect(&other).await.unwrap_err().kind(),
            ErrorKind::NotFound,
            "{text}"
        );
        place.runtime.destroy(&other).await.unwrap();
    }
    assert_eq!(
        place.ask("GET", &format!("/containers/{id}/json"), "").await.0,
        200,
        "it was removed"
    );
    assert_eq!(
        place.ask("DELETE", &format!("/containers/{id}?force=1"), "").await.0,
        204
    );
}

macro_rules! scenarios {
    ($target:expr => $($name:ident,)*) => {
        vec![$(trial($target, stringify!($name), $name),)*]
    };
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = support::engines().into_iter().flat_map(|target| {
        scenarios![target =>
            faults_at_the_image,
            faults_at_create,
            faults_at_attach,
            faults_at_start,
            faults_at_the_events,
            faults_at_inspect,
            answers_that_cannot_be_read,
            the_socket_is_gone_before,
            the_socket_goes_while_a_process_runs,
            the_engine_restarts_while_a_process_runs,
            a_stream_is_cut_while_a_process_runs,
            an_exec_that_goes_wrong,
            a_copy_that_is_cut_is_no_shorter_copy,
            somebody_else_removes_the_container,
            somebody_else_removes_it_while_it_is_made,
            somebody_else_kills_the_container,
            the_image_is_removed_meanwhile,
            a_registry_that_cannot_be_reached,
            the_disk_of_the_engine_is_full,
            a_destroy_that_fails_can_be_repeated,
            the_guest_program_is_copied_again,
            a_volume_that_somebody_removes_is_made_again,
            an_image_with_volumes_leaves_none,
            a_container_of_somebody_else_is_left_alone,
        ]
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn trial<R: Future<Output = ()> + Send + 'static>(
    target: Target,
    name: &'static str,
    scenario: impl Fn(Place) -> R + Send + 'static,
) -> Trial {
    Trial::test(format!("{}::{name}", target.name()), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        // A panic is the failure, which the harness catches.
        runtime.block_on(async { scenario(Place::new(target).await).await });
        runtime.shutdown_timeout(Duration::from_secs(1));
        Ok(())
    })
}
