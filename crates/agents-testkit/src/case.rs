//! Cases as data, and how they are run.

use std::{fmt, future::Future, panic::AssertUnwindSafe, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{FutureExt, future::BoxFuture};
use libtest_mimic::{Arguments, Completion, Trial};

/// How long a case may take, with its fixture and its clean-up.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// What a case gives: passed, or why not. Cases may also panic, by `assert!` and the like.
pub type CaseResult = Result<(), Failure>;

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The adapter broke its contract.
    Failed(String),
    /// The adapter does not offer what the case is about, or the environment lacks what it needs.
    Skipped(String),
}

impl From<agents_core::Error> for Failure {
    fn from(error: agents_core::Error) -> Self {
        Self::Failed(format!("{} [{}]", error.report(), error.kind()))
    }
}

/// Fails a case with a message.
pub(crate) fn failed<T>(message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Failed(message.into()))
}

/// Skips a case, with the reason.
pub(crate) fn skipped<T>(reason: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Skipped(reason.into()))
}

/// What cases run over: an adapter in a place of its own, and what it takes to judge it.
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// Called after each case, whether it passed or not.
    async fn clean_up(&self) {}
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The adapter keeps this part of its contract.
    Passed,
    /// It does not.
    Failed(String),
    /// The case could not judge, and why.
    Ignored(String),
}

/// One part of a contract, as a function that tries it.
pub struct Case<F: ?Sized> {
    name: String,
    run: Arc<dyn Fn(Arc<F>) -> BoxFuture<'static, CaseResult> + Send + Sync>,
}

impl<F: ?Sized> Clone for Case<F> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            run: Arc::clone(&self.run),
        }
    }
}

impl<F: ?Sized> fmt::Debug for Case<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Case({})", self.name)
    }
}

impl<F: Fixture> Case<F> {
    /// A case with its name.
    pub fn new<R>(name: impl Into<String>, run: impl Fn(Arc<F>) -> R + Send + Sync + 'static) -> Self
    where
        R: Future<Output = CaseResult> + Send + 'static,
    {
        Self {
            name: name.into(),
            run: Arc::new(move |fixture| run(fixture).boxed()),
        }
    }

    /// The name, which is unique within the cases of a kind.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs the case and cleans up after it. A panic is a failure.
    pub async fn run(&self, fixture: F) -> Outcome {
        let fixture = Arc::new(fixture);
        let case = AssertUnwindSafe((self.run)(Arc::clone(&fixture))).catch_unwind();
        let ended = tokio::time::timeout(TIME_LIMIT, case).await;
        let outcome = match ended {
            Ok(Ok(Ok(()))) => Outcome::Passed,
            Ok(Ok(Err(Failure::Failed(message)))) => Outcome::Failed(message),
            Ok(Ok(Err(Failure::Skipped(reason)))) => Outcome::Ignored(reason),
            Ok(Err(panic)) => Outcome::Failed(text_of(&*panic)),
            Err(_) => Outcome::Failed(format!("it did not end within {} seconds", TIME_LIMIT.as_secs())),
        };
        fixture.clean_up().await;
        outcome
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it panicked")
        .to_owned()
}

/// Turns cases into trials named `<adapter>::<case>`. Each makes a fixture of its own; a fixture that cannot be made, with
/// the reason as its error, fails the case: a suite whose server is not there has not passed.
pub fn trials<F, M, R>(adapter: &str, cases: Vec<Case<F>>, make: M) -> Vec<Trial>
where
    F: Fixture,
    M: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<F, String>>,
{
    let trial = |case: Case<F>| {
        let make = make.clone();
        let name = format!("{adapter}::{}", case.name());
        Trial::ignorable_test(name, move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(|error| format!("cannot start a runtime: {error}"))?;
            let outcome = runtime.block_on(async {
                match make().await {
                    Ok(fixture) => case.run(fixture).await,
                    Err(reason) => Outcome::Failed(reason),
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
            match outcome {
                Outcome::Passed => Ok(Completion::Completed),
                Outcome::Failed(message) => Err(message.into()),
                Outcome::Ignored(reason) => Ok(Completion::ignored_with(reason)),
            }
        })
    };
    cases.into_iter().map(trial).collect()
}

/// Runs trials as the test programs of cargo are run, with the same arguments. For a test target with `harness = false`:
///
/// ```no_run
/// use agents_testkit::{fakes::MemoryAudit, audit, run, trials};
///
/// fn main() -> std::process::ExitCode {
///     run([trials("fake", audit::cases(), || async {
///         Ok(audit::AuditFixture::new(std::sync::Arc::new(MemoryAudit::new())))
///     })])
/// }
/// ```
pub fn run(trials: impl IntoIterator<Item = Vec<Trial>>) -> ExitCode {
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}

/// Lists functions as cases under their own names.
macro_rules! cases {
    ($($case:ident,)*) => {
        vec![$($crate::Case::new(stringify!($case), $case),)*]
    };
}
pub(crate) use cases;
