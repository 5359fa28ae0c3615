//! What a spool does when its sink is away, and when it is itself at its end.

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use agents_core::{AuditLogger, AuditQuery, ChainLink, ErrorKind};
use agents_journal::{ChainKey, EventVerifier, Keys, Reading};
use agents_layers::spool::{Spool, SpoolOptions, SpoolReport, inspect, inspect_all};
use common::{Fickle, Mood, event};

fn options(folder: &Path) -> SpoolOptions {
    SpoolOptions::new(folder)
        .with_max_delay(Duration::from_millis(50))
        .with_flush_limit(Duration::from_secs(20))
        .with_shutdown_limit(Duration::from_millis(300))
}

fn open(sink: &Fickle, folder: &Path) -> Spool {
    Spool::new(Arc::new(sink.clone()), options(folder)).unwrap()
}

async fn report(folder: &Path) -> SpoolReport {
    inspect(folder).await.unwrap().unwrap()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn events_of_an_outage_arrive_once_in_order_and_verify_there() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    let key = ChainKey::hmac(&[7; 32]).unwrap();
    let spool = Spool::new(Arc::new(sink.clone()), options(folder.path()).with_key(key.clone())).unwrap();
    assert!(spool.capabilities().durable && spool.capabilities().query);
    spool.emit(event(0)).await.unwrap();
    spool.flush().await.unwrap();
    for mood in [
        Mood::Fails(ErrorKind::Unavailable),
        Mood::Fails(ErrorKind::Unauthenticated),
        Mood::LosesAnswers,
        Mood::Partial,
    ] {
        sink.set(mood.clone());
        let first = spool.status().delivered;
        for n in 0..10 {
            let events = (0..10).map(|m| event(first + n * 10 + m)).collect();
            for outcome in spool.emit_batch(events).await.unwrap() {
                outcome.unwrap();
            }
        }
        if mood != Mood::Partial {
            until("a failure is seen", || spool.status().failing.is_some()).await;
            let found = report(folder.path()).await;
            assert!(found.events() > 0 && found.oldest().is_some(), "{mood:?}: {found:?}");
            assert!(found.writers[0].live && found.lost() == 0);
            let failing = found.failing().unwrap();
            assert!(
                failing.error.contains("in a mood") && failing.attempts > 0,
                "{failing:?}"
            );
            let answer = spool.check_availability().await.unwrap();
            assert!(
                answer.available && answer.problems[0].reason.contains("in a mood"),
                "{answer:?}"
            );
        }
        sink.set(Mood::Fine);
        spool.flush().await.unwrap();
        let status = spool.status();
        assert_eq!((status.events, status.failing, status.lost), (0, None, 0), "{mood:?}");
        assert_eq!(status.delivered, first + 100, "{mood:?}");
    }
    assert!(spool.status().retried > 2);
    let events = sink.trail.events();
    let mut numbers = sink.numbers();
    assert_eq!(numbers[..301], (0..301).collect::<Vec<_>>());
    // What the sink took of a batch comes before what it took the next time.
    numbers.sort_unstable();
    assert_eq!(numbers, (0..401).collect::<Vec<_>>());
    let mut verifier = EventVerifier::new(Keys::none().with(&key), Reading::Unordered, Vec::new());
    events.iter().for_each(|event| verifier.push(event));
    let found = verifier.finish();
    assert_eq!((found.fault, found.events), (None, 401));
    spool.shutdown().await.unwrap();
    let found = report(folder.path()).await;
    assert_eq!((found.events(), found.failing(), found.writers.len()), (0, None, 1));
    assert_eq!(spool.emit(event(0)).await.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_sink_that_asks_for_a_pause_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    let spool = open(&sink, folder.path());
    sink.set(Mood::Throttles(Duration::from_millis(700)));
    spool.emit(event(0)).await.unwrap();
    until("it was asked", || !sink.calls().is_empty()).await;
    sink.set(Mood::Fine);
    // A flush does not shorten what the sink has asked for.
    spool.flush().await.unwrap();
    let calls = sink.calls();
    assert_eq!(calls.len(), 2);
    assert!(calls[1] - calls[0] >= Duration::from_millis(700));
    assert_eq!(sink.numbers(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_never_answers_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    let spool = Spool::new(Arc::new(sink.clone()), SpoolOptions::new(folder.path())).unwrap();
    sink.set(Mood::Hangs);
    spool.emit(event(0)).await.unwrap();
    until("it was asked", || !sink.calls().is_empty()).await;
    sink.set(Mood::Fine);
    // The clock runs as fast as it may, so minutes pass at once.
    until("it was asked again", || sink.numbers() == [0]).await;
    assert_eq!((spool.status().retried, sink.calls().len()), (1, 2));
}

#[tokio::test]
async fn a_flush_ends_a_pause_and_says_what_still_waits() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    let options = options(folder.path()).with_max_delay(Duration::from_secs(3600));
    let spool = Spool::new(
        Arc::new(sink.clone()),
        options.with_flush_limit(Duration::from_millis(400)),
    )
    .unwrap();
    sink.set(Mood::Fails(ErrorKind::Unavailable));
    spool.emit(event(0)).await.unwrap();
    let error = spool.flush().await.unwrap_err();
    assert_eq!((error.kind(), error.is_temporary()), (ErrorKind::Timeout, true));
    assert!(error.message().contains("1 events are safe on disk") && error.message().contains("in a mood"));
    // By now the pauses are longer than the test.
    for _ in 0..12 {
        let _ = spool.flush().await;
    }
    sink.set(Mood::Fine);
    spool.flush().await.unwrap();
    assert_eq!(sink.numbers(), [0]);
}

#[tokio::test]
async fn what_the_sink_never_takes_is_kept_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    let spool = open(&sink, folder.path());
    sink.set(Mood::Judges);
    let bad = |n| event(n).with_fact("bad", true);
    // Among others, and alone.
    for outcome in spool
        .emit_batch(vec![event(0), bad(1), event(2), bad(3)])
        .await
        .unwrap()
    {
        outcome.unwrap();
    }
    spool.flush().await.unwrap();
    spool.emit_batch(vec![bad(4), bad(5)]).await.unwrap();
    spool.flush().await.unwrap();
    spool.emit(bad(6)).await.unwrap();
    spool.emit(event(7)).await.unwrap();
    spool.flush().await.unwrap();
    assert_eq!(sink.numbers(), [0, 2, 7]);
    assert_eq!((spool.status().lost, spool.status().events), (5, 0));
    let found = report(folder.path()).await;
    assert_eq!(found.lost(), 5);
    let kept = std::fs::read_to_string(folder.path().join("0001/lost.jsonl")).unwrap();
    for (line, n) in kept.lines().zip([1, 3, 4, 5, 6]) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["event"]["payload"]["n"], n);
        assert_eq!(line["event"]["chain"]["sequence"], line["sequence"]);
        assert!(line["reason"].as_str().unwrap().contains("in a mood"));
    }
    let answer = spool.check_availability().await.unwrap();
    assert!(
        answer
            .problems
            .iter()
            .any(|problem| problem.reason.contains("refused 5 events"))
    );
    // A sink that refuses everything is at fault itself, and nothing is lost to it.
    sink.set(Mood::Misconfigured);
    spool.emit_batch(vec![event(8), event(9)]).await.unwrap();
    until("it was refused", || {
        spool.status().failing.is_some_and(|failing| failing.attempts > 2)
    })
    .await;
    assert_eq!((spool.status().lost, spool.status().events), (5, 2));
    sink.set(Mood::Fine);
    spool.flush().await.unwrap();
    assert_eq!(sink.numbers(), [0, 2, 7, 8, 9]);
}

#[tokio::test]
async fn a_full_spool_refuses_and_takes_again_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    sink.set(Mood::Fails(ErrorKind::Unavailable));
    let spool = Spool::new(Arc::new(sink.clone()), options(folder.path()).with_max_bytes(1 << 20)).unwrap();
    let large = |n| event(n).with_fact("text", "x".repeat(50_000));
    let mut taken = 0;
    let error = loop {
        match spool.emit(large(taken)).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100);
    };
    assert_eq!(
        (error.kind(), error.is_temporary()),
        (ErrorKind::ResourceExhausted, true)
    );
    assert!(error.message().contains("takes no more events"), "{error}");
    assert!((15..=20).contains(&taken), "{taken}");
    let refused = spool.emit_batch(vec![large(0), large(1)]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    let status = spool.status();
    assert_eq!((status.refused, status.events), (3, taken));
    assert!(status.bytes <= 1 << 20);
    let answer = spool.check_availability().await.unwrap();
    assert!(
        !answer.available && answer.problems[0].reason.contains("it is full"),
        "{answer:?}"
    );
    sink.set(Mood::Fine);
    spool.flush().await.unwrap();
    // Segments go once it is written down that they were delivered.
    until("there is room", || spool.status().bytes < 300_000).await;
    for n in taken..taken + 10 {
        spool.emit(large(n)).await.unwrap();
    }
    spool.flush().await.unwrap();
    assert_eq!(sink.numbers(), (0..taken + 10).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_old_event_that_waits_refuses_new_ones_when_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    sink.set(Mood::Fails(ErrorKind::Unavailable));
    let options = options(folder.path()).with_max_age(Some(Duration::from_millis(200)));
    let spool = Spool::new(Arc::new(sink.clone()), options).unwrap();
    spool.emit(event(0)).await.unwrap();
    until("it is read", || spool.status().oldest.is_some()).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let error = spool.emit(event(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(!spool.check_availability().await.unwrap().available);
    sink.set(Mood::Fine);
    spool.flush().await.unwrap();
    spool.emit(event(2)).await.unwrap();
    spool.flush().await.unwrap();
    assert_eq!(sink.numbers(), [0, 2]);
    assert_eq!(spool.status().refused, 1);
}

#[tokio::test]
async fn what_is_left_at_the_end_is_delivered_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    sink.set(Mood::Hangs);
    // Two at once, each with a writer of its own.
    let (one, two) = (open(&sink, folder.path()), open(&sink, folder.path()));
    for n in 0..10 {
        one.emit(event(n)).await.unwrap();
        two.emit(event(100 + n)).await.unwrap();
    }
    assert_eq!(report(folder.path()).await.writers.len(), 2);
    one.shutdown().await.unwrap();
    // As when a process ends without a word.
    drop(two);
    let mut found = report(folder.path()).await;
    for _ in 0..100 {
        if found.left() == 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        found = report(folder.path()).await;
    }
    assert_eq!((found.left(), found.events()), (20, 20), "{found:?}");
    assert!(sink.numbers().is_empty());
    sink.set(Mood::Fine);
    // Who asks finds what was left, of both.
    let next = open(&sink, folder.path());
    let page = next.query(AuditQuery::new()).await.unwrap();
    assert_eq!(page.events.len(), 20);
    let of = |from: u64| -> Vec<u64> {
        sink.numbers()
            .into_iter()
            .filter(|n| (from..from + 100).contains(n))
            .collect()
    };
    assert_eq!(of(0), (0..10).collect::<Vec<_>>());
    assert_eq!(of(100), (100..110).collect::<Vec<_>>());
    next.shutdown().await.unwrap();
    assert_eq!(report(folder.path()).await.events(), 0);
    assert_eq!(sink.deliveries(), 20);
}

#[tokio::test]
async fn who_only_reads_takes_no_place_among_the_writers() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("spool");
    let sink = Fickle::default();
    let spool = open(&sink, &below);
    assert!(spool.query(AuditQuery::new()).await.unwrap().events.is_empty());
    spool.flush().await.unwrap();
    assert_eq!(inspect(&below).await.unwrap(), None);
    assert_eq!(spool.status(), agents_layers::spool::SpoolStatus::default());
    spool.emit(event(0)).await.unwrap();
    spool.shutdown().await.unwrap();
    let reader = open(&sink, &below);
    assert_eq!(reader.query(AuditQuery::new()).await.unwrap().events.len(), 1);
    assert!(!report(&below).await.writers[0].live);
    assert_eq!(inspect_all(folder.path()).await.unwrap().len(), 1);
    assert!(inspect_all(&folder.path().join("nowhere")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_folder_is_for_one_sink() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    sink.set(Mood::Hangs);
    let spool = open(&sink, folder.path());
    spool.emit(event(0)).await.unwrap();
    spool.shutdown().await.unwrap();
    let other = agents_testkit::fakes::MemoryAudit::new();
    let wrong = Spool::new(Arc::new(other.clone()), options(folder.path())).unwrap();
    let error = wrong.emit(event(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("1 events for fickle memory"), "{error}");
    sink.set(Mood::Fine);
    let right = open(&sink, folder.path());
    right.emit(event(2)).await.unwrap();
    right.shutdown().await.unwrap();
    assert_eq!(sink.numbers(), [0, 2]);
    // Now it is free.
    wrong.emit(event(1)).await.unwrap();
    wrong.flush().await.unwrap();
    assert_eq!(other.events().len(), 1);
}

#[tokio::test]
async fn an_event_that_is_too_large_is_refused_alone_and_a_link_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    let spool = open(&sink, folder.path());
    let huge = event(1).with_fact("text", "x".repeat(2 << 20));
    let linked = event(2).with_chain(Some(ChainLink::new("w", 7, "aa", "bb")));
    let outcomes = spool.emit_batch(vec![event(0), huge.clone(), linked]).await.unwrap();
    let kinds: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().map(|error| error.kind()))
        .collect();
    assert_eq!(kinds, [None, Some(ErrorKind::DataInvalid), None]);
    assert_eq!(
        spool.emit_batch(vec![huge]).await.unwrap_err().kind(),
        ErrorKind::DataInvalid
    );
    spool.flush().await.unwrap();
    let events = sink.trail.events();
    assert_eq!(events[0].chain.as_ref().unwrap().sequence, 1);
    assert_eq!(events[1].chain.as_ref().unwrap().writer, "w");
}

#[tokio::test]
async fn what_no_version_knows_is_kept_and_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Fickle::default();
    let spool = open(&sink, folder.path());
    spool.emit(event(0)).await.unwrap();
    spool.shutdown().await.unwrap();
    let journal = agents_journal::Journal::open(agents_journal::JournalOptions::new(folder.path()))
        .await
        .unwrap();
    journal.append(r#"{"event_type": "of tomorrow"}"#).await.unwrap();
    journal.close().await.unwrap();
    let spool = open(&sink, folder.path());
    spool.emit(event(1)).await.unwrap();
    spool.flush().await.unwrap();
    assert_eq!(sink.numbers(), [0, 1]);
    let kept = std::fs::read_to_string(folder.path().join("0001/lost.jsonl")).unwrap();
    assert!(kept.contains("of tomorrow"), "{kept}");
}

#[test]
fn options_are_judged() {
    for options in [SpoolOptions::new(""), SpoolOptions::new("/s").with_max_bytes(10)] {
        let error = Spool::new(Arc::new(Fickle::default()), options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    }
}
