//! The conformance cases over several sinks, and what happens when one of them fails.

mod common;

use std::{process::ExitCode, sync::Arc, time::Duration};

use agents_core::{AuditLogger, AuditQuery, ErrorKind};
use agents_layers::{
    composite::{Composite, Part},
    spool::{Spool, SpoolOptions},
};
use agents_testkit::{
    audit::{AuditFixture, cases},
    fakes::MemoryAudit,
    libtest_mimic::Trial,
    run, trials,
};
use common::{Fickle, Mood, event};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    let trial = |name, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    run([
        trials("composite", cases(), fixture),
        vec![
            trial("one_is_required", one_is_required),
            trial("required_sinks_decide", required_sinks_decide),
            trial("best_effort_holds_nobody_up", best_effort_holds_nobody_up),
            trial("the_next_answers_when_one_is_away", the_next_answers_when_one_is_away),
        ],
    ])
}

/// A memory, one behind a spool, and one that is best effort.
async fn fixture() -> Result<AuditFixture, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = folder.path().to_owned();
    let sinks = [MemoryAudit::new(), MemoryAudit::new(), MemoryAudit::new()];
    let open = move |sinks: [MemoryAudit; 3]| -> agents_core::Result<Arc<dyn AuditLogger>> {
        let [one, two, three] = sinks;
        let spool = Spool::new(Arc::new(two), SpoolOptions::new(&path))?;
        Ok(Arc::new(Composite::new(vec![
            Part::best_effort(Arc::new(three)),
            Part::required(Arc::new(one)),
            Part::required(Arc::new(spool)),
        ])?))
    };
    let audit = open(sinks.clone()).map_err(|error| error.report())?;
    let fixture = AuditFixture::new(audit).keeping(folder);
    Ok(fixture.with_reopen(move || Box::pin(std::future::ready(open(sinks.clone().map(|sink| sink.reopened()))))))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn one_is_required() {
    let error = Composite::new(vec![Part::best_effort(Arc::new(MemoryAudit::new()))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert_eq!(Composite::new(Vec::new()).unwrap_err().kind(), ErrorKind::ConfigInvalid);
}

fn required_sinks_decide() {
    block_on(async {
        let (good, bad, spare) = (Fickle::default(), Fickle::default(), Fickle::default());
        let audit = Composite::new(vec![
            Part::required(Arc::new(good.clone())),
            Part::required(Arc::new(bad.clone())),
            Part::best_effort(Arc::new(spare.clone())),
        ])
        .unwrap();
        bad.set(Mood::Fails(ErrorKind::Unavailable));
        let error = audit.emit(event(0)).await.unwrap_err();
        assert_eq!((error.kind(), error.is_temporary()), (ErrorKind::Unavailable, true));
        assert!(!audit.check_availability().await.unwrap().available);
        bad.set(Mood::Partial);
        let outcomes = audit.emit_batch(vec![event(1), event(2), event(3)]).await.unwrap();
        let fine: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
        assert_eq!(fine, [true, false, true]);
        audit.flush().await.unwrap();
        assert_eq!(bad.numbers(), [1, 3]);
        // What is not on record for sure is not spread.
        assert_eq!(spare.numbers(), [1, 3]);
        assert_eq!(good.numbers(), [0, 1, 2, 3]);
    });
}

fn best_effort_holds_nobody_up() {
    block_on(async {
        let (good, bad) = (Fickle::default(), Fickle::default());
        let audit = Composite::new(vec![
            Part::required(Arc::new(good.clone())),
            Part::best_effort(Arc::new(bad.clone())),
        ])
        .unwrap();
        let status = || audit.best_effort().remove(0);
        audit.emit(event(0)).await.unwrap();
        audit.flush().await.unwrap();
        assert_eq!((status().delivered, status().lost), (1, 0));
        bad.set(Mood::Fails(ErrorKind::Unavailable));
        audit.emit_batch(vec![event(1), event(2)]).await.unwrap();
        audit.flush().await.unwrap();
        assert_eq!((status().delivered, status().lost, status().waiting), (1, 2, 0));
        assert!(status().error.unwrap().contains("in a mood"));
        let answer = audit.check_availability().await.unwrap();
        assert!(answer.available);
        assert!(
            answer
                .problems
                .iter()
                .any(|problem| problem.reason.contains("2 events were lost"))
        );
        bad.set(Mood::Partial);
        audit.emit_batch(vec![event(3), event(4)]).await.unwrap();
        audit.flush().await.unwrap();
        assert_eq!((status().delivered, status().lost), (2, 3));
        // One that hangs: what waits for it is bounded, and the rest is lost.
        bad.set(Mood::Hangs);
        for n in 0..11 {
            audit
                .emit_batch((0..1000).map(|m| event(n * 1000 + m)).collect())
                .await
                .unwrap();
        }
        assert_eq!((status().waiting, status().lost), (10_000, 1003));
        assert_eq!(good.deliveries(), 11_005);
        let ended = tokio::time::timeout(Duration::from_secs(10), audit.shutdown()).await;
        ended.unwrap().unwrap();
    });
}

fn the_next_answers_when_one_is_away() {
    block_on(async {
        let (one, two) = (Away::default(), MemoryAudit::new());
        let audit = Composite::new(vec![
            Part::required(Arc::new(one)),
            Part::required(Arc::new(two.clone())),
        ])
        .unwrap();
        for n in 0..4 {
            audit.emit(event(n)).await.unwrap();
        }
        let query = AuditQuery::new().with_limit(3);
        let page = audit.query(query.clone()).await.unwrap();
        assert_eq!(page.events.len(), 3);
        let next = page.next.unwrap();
        assert!(next.starts_with("1."), "{next}");
        assert_eq!(
            audit
                .query(query.clone().with_cursor(Some(next)))
                .await
                .unwrap()
                .events
                .len(),
            1
        );
        let foreign = audit
            .query(query.with_cursor(Some("7.1".to_owned())))
            .await
            .unwrap_err();
        assert_eq!(foreign.kind(), ErrorKind::ConfigInvalid);
    });
}

/// Takes everything, and answers no question.
#[derive(Debug, Default)]
struct Away(MemoryAudit);

#[async_trait::async_trait]
impl AuditLogger for Away {
    fn info(&self) -> agents_core::AdapterInfo {
        self.0.info()
    }
    fn capabilities(&self) -> agents_core::AuditCapabilities {
        self.0.capabilities()
    }
    async fn check_availability(&self) -> agents_core::Result<agents_core::Availability> {
        self.0.check_availability().await
    }
    fn location(&self) -> String {
        self.0.location()
    }
    async fn emit(&self, event: agents_core::AuditEvent) -> agents_core::Result<()> {
        self.0.emit(event).await
    }
    async fn emit_batch(
        &self,
        events: Vec<agents_core::AuditEvent>,
    ) -> agents_core::Result<Vec<agents_core::Result<()>>> {
        self.0.emit_batch(events).await
    }
    async fn query(&self, _: AuditQuery) -> agents_core::Result<agents_core::AuditPage> {
        Err(agents_core::Error::new(ErrorKind::Unavailable, "away").temporary(None))
    }
    async fn flush(&self) -> agents_core::Result<()> {
        self.0.flush().await
    }
    async fn shutdown(&self) -> agents_core::Result<()> {
        self.0.shutdown().await
    }
}
