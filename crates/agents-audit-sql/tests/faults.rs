//! Real servers, with faults in between: what was acknowledged is there, once, and in order.

mod common;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use agents_audit_sql::{DatabaseAudit, TlsMode};
use agents_core::{AuditLogger, AuditQuery, ErrorKind, SessionId};
use agents_testkit::proxy::{Fault, FaultProxy, during};
use common::{Server, config, event, number, numbers, open};

/// A proxy before the server of a URL, and the URL that leads through it.
async fn through_proxy(url: &str) -> (FaultProxy, String) {
    let authority = url.split_once("://").unwrap().1.split('/').next().unwrap();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let server: SocketAddr = host.replace("localhost", "127.0.0.1").parse().unwrap();
    let proxy = FaultProxy::start(server).await.unwrap();
    let through = url.replace(authority, &format!("{user}@{}", proxy.address()));
    (proxy, through)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_out() {
    for server in Server::ALL {
        let (proxy, url) = through_proxy(&server.url()).await;
        let (audit, session) = (open(&url), SessionId::generate());
        audit.emit(event(&session, 0)).await.unwrap();
        let emit = audit.emit(event(&session, 1));
        during(&proxy, Fault::Reset, Duration::from_secs(4), emit)
            .await
            .unwrap();
        audit.emit(event(&session, 2)).await.unwrap();
        assert!(proxy.faults() > 0);
        assert_eq!(numbers(&*audit, &session).await, [0, 1, 2], "{server:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_is_a_temporary_error_and_ends_by_itself() {
    for server in Server::ALL {
        let (proxy, url) = through_proxy(&server.url()).await;
        let config = config().with_timeout_seconds(2);
        let (audit, session) = (DatabaseAudit::new(config, Some(&url)).unwrap(), SessionId::generate());
        audit.emit(event(&session, 0)).await.unwrap();
        for fault in [Fault::Reset, Fault::Hang] {
            proxy.set(fault);
            let start = Instant::now();
            let error = audit.emit(event(&session, 1)).await.unwrap_err();
            assert!(error.is_temporary(), "{server:?}: {error:?}");
            assert!(
                start.elapsed() < Duration::from_secs(4),
                "{server:?}: {:?}",
                start.elapsed()
            );
            let batch = audit.emit_batch(vec![event(&session, 1), event(&session, 2)]).await;
            assert!(batch.unwrap_err().is_temporary());
            let availability = audit.check_availability().await.unwrap();
            assert!(!availability.available && !availability.problems[0].remedy.is_empty());
        }
        proxy.set(Fault::None);
        // Connections that hung do not come back, and none of them may be in the way.
        let (mut tries, start) = (0, Instant::now());
        while let Err(error) = audit.emit(event(&session, 3)).await {
            assert!(
                error.is_temporary() && start.elapsed() < Duration::from_secs(20),
                "{error:?}"
            );
            tries += 1;
        }
        assert!(tries < 5, "{server:?}: {tries}");
        let found = numbers(&audit, &session).await;
        assert_eq!((found.first(), found.last()), (Some(&0), Some(&3)), "{server:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_after_the_commit_makes_no_second_event() {
    for server in Server::ALL {
        let (proxy, url) = through_proxy(&server.url()).await;
        let (audit, session) = (open(&url), SessionId::generate());
        audit.emit(event(&session, 0)).await.unwrap();
        let events: Vec<_> = (1..50).map(|n| event(&session, n)).collect();
        let needle = match server {
            // One statement, which commits by itself.
            Server::Postgres => events[20].event_id.as_bytes().to_vec(),
            Server::MariaDb => b"COMMIT".to_vec(),
        };
        proxy.set(Fault::LoseAnswerTo(needle));
        for outcome in audit.emit_batch(events).await.unwrap() {
            outcome.unwrap();
        }
        assert_eq!(proxy.faults(), 1, "{server:?}");
        assert_eq!(
            numbers(&*audit, &session).await,
            (0..50).collect::<Vec<_>>(),
            "{server:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_at_random_lose_and_double_nothing() {
    for server in Server::ALL {
        let (proxy, url) = through_proxy(&server.url()).await;
        let (audit, session) = (open(&url), SessionId::generate());
        audit.emit(event(&session, 0)).await.unwrap();
        let mut count = 1;
        let writing = async {
            while count < 200 || proxy.faults() < 8 {
                let events = (0..10).map(|n| event(&session, count + n)).collect();
                for outcome in audit.emit_batch(events).await.unwrap() {
                    outcome.unwrap();
                }
                count += 10;
            }
        };
        let breaking = async {
            for pause in (0..).map(|n: u64| 200 + n * 37 % 300) {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                proxy.set(Fault::Reset);
                tokio::time::sleep(Duration::from_millis(5)).await;
                proxy.set(Fault::None);
            }
        };
        tokio::select! {
            () = writing => {}
            () = breaking => {}
        }
        proxy.set(Fault::None);
        let found = numbers(&*audit, &session).await;
        assert_eq!(found, (0..count as u64).collect::<Vec<_>>(), "{server:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_the_trail_misses_nothing_of_concurrent_writers() {
    for server in Server::ALL {
        let url = server.url();
        let session = SessionId::generate();
        let mut writers = Vec::new();
        for writer in 0..6 {
            // Adapters of their own, as in other processes.
            let (audit, session) = (open(&url), session.clone());
            writers.push(tokio::spawn(async move {
                for n in 0..40 {
                    let number = writer * 1000 + n * 10;
                    let events = (0..1 + n % 3).map(|k| event(&session, number + k)).collect();
                    audit.emit_batch(events).await.unwrap();
                }
            }));
        }
        let reader = open(&url);
        let all = 6 * (0..40).map(|n| 1 + n % 3).sum::<usize>();
        let (mut seen, mut cursor) = (Vec::new(), None);
        let start = Instant::now();
        while seen.len() < all && start.elapsed() < Duration::from_secs(60) {
            // Asked before the page is: one that is read while they write may not be the last.
            let finished = writers.iter().all(|writer| writer.is_finished());
            let query = AuditQuery::new().with_session(Some(session.clone())).with_limit(7);
            let page = reader.query(query.with_cursor(cursor.clone())).await.unwrap();
            // Without a next page, the same one is read again; what was seen is dropped.
            if let Some(next) = page.next {
                seen.extend(page.events.iter().map(number));
                cursor = Some(next);
            } else if finished {
                seen.extend(page.events.iter().map(number));
            }
        }
        for writer in writers {
            writer.await.unwrap();
        }
        let distinct: BTreeSet<_> = seen.iter().collect();
        assert_eq!((seen.len(), distinct.len()), (all, all), "{server:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_database_may_be_met_by_many_at_once() {
    for server in Server::ALL {
        let url = server.database("new").await;
        let session = SessionId::generate();
        let starters: Vec<_> = (0..6)
            .map(|n| {
                let (audit, session) = (open(&url), session.clone());
                tokio::spawn(async move { audit.emit(event(&session, n)).await })
            })
            .collect();
        for starter in starters {
            starter
                .await
                .unwrap()
                .unwrap_or_else(|error| panic!("{server:?}: {}", error.report()));
        }
        let audit = open(&url);
        let found: BTreeSet<_> = numbers(&*audit, &session).await.into_iter().collect();
        assert_eq!(found, (0..6).collect(), "{server:?}");
        let facts = audit.check_availability().await.unwrap().facts;
        assert!(
            facts
                .iter()
                .any(|fact| fact.contains("SQL") || fact.contains("MariaDB")),
            "{facts:?}"
        );
        // What the check wrote is taken back.
        assert_eq!(audit.query(AuditQuery::new()).await.unwrap().events.len(), 6);
        audit.shutdown().await.unwrap();
        server.drop_database(&url).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_are_told_as_such_and_may_come_back() {
    for server in Server::ALL {
        let url = server.database("login").await;
        let user = format!("auditor_{}", std::process::id());
        let database = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
        let password = |word: &str| match server {
            Server::Postgres => format!("ALTER ROLE {user} PASSWORD '{word}'"),
            Server::MariaDb => format!("ALTER USER {user}@'%' IDENTIFIED BY '{word}'"),
        };
        match server {
            Server::Postgres => {
                server
                    .administer(&format!("CREATE ROLE {user} LOGIN PASSWORD 'hunter2'"))
                    .await;
                server.run(&url, &format!("GRANT ALL ON SCHEMA public TO {user}")).await;
            }
            Server::MariaDb => {
                server
                    .administer(&format!("CREATE USER {user}@'%' IDENTIFIED BY 'hunter2'"))
                    .await;
                server
                    .administer(&format!("GRANT ALL ON {database}.* TO {user}@'%'"))
                    .await;
            }
        }
        let authority = url.split_once("://").unwrap().1.split('/').next().unwrap();
        let host = authority.rsplit('@').next().unwrap();
        let (proxy, theirs) = through_proxy(&url.replace(authority, &format!("{user}:hunter2@{host}"))).await;
        let (audit, session) = (open(&theirs), SessionId::generate());
        audit.emit(event(&session, 0)).await.unwrap();

        server.administer(&password("other")).await;
        // Those that are logged in stay so.
        proxy.set(Fault::Reset);
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy.set(Fault::None);
        let error = audit.emit(event(&session, 1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{server:?}: {error:?}");
        let availability = audit.check_availability().await.unwrap();
        assert!(availability.problems[0].remedy.contains("password"), "{availability:?}");
        let printed = format!("{error:?} {} {availability:?} {audit:?}", error.report());
        assert!(!printed.contains("hunter2"), "{printed}");

        server.administer(&password("hunter2")).await;
        audit.emit(event(&session, 1)).await.unwrap();
        assert_eq!(numbers(&*audit, &session).await, [0, 1], "{server:?}");
        audit.shutdown().await.unwrap();
        server.drop_database(&url).await;
        match server {
            Server::Postgres => server.administer(&format!("DROP ROLE {user}")).await,
            Server::MariaDb => server.administer(&format!("DROP USER {user}@'%'")).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_used_and_the_certificate_and_its_name_are_checked() {
    for server in Server::ALL {
        let session = SessionId::generate();
        let required = config().with_tls(TlsMode::Required);
        let trusting = required.clone().with_tls_ca_file(Some(server.authority()));
        let audit = DatabaseAudit::new(trusting.clone(), Some(&server.url())).unwrap();
        audit.emit(event(&session, 0)).await.unwrap();
        assert_eq!(numbers(&audit, &session).await, [0], "{server:?}");

        // The system does not know the authority, and the certificate is for another address.
        let other = server.url().replace("127.0.0.1", "127.0.0.2");
        let listening = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = listening.local_addr().unwrap().port();
        let at = server
            .url()
            .rsplit(':')
            .next()
            .unwrap()
            .split('/')
            .next()
            .unwrap()
            .to_owned();
        tokio::spawn(forward(listening, format!("127.0.0.1:{at}")));
        let other = other.replace(&format!("127.0.0.2:{at}"), &format!("127.0.0.2:{port}"));
        for (config, url) in [(required, server.url()), (trusting, other)] {
            let audit = DatabaseAudit::new(config, Some(&url)).unwrap();
            let error = audit.emit(event(&session, 1)).await.unwrap_err();
            assert!(!error.is_temporary(), "{server:?}: {error:?}");
            assert!(error.message().contains("tls_ca_file"), "{server:?}: {error:?}");
        }
        assert_eq!(numbers(&audit, &session).await, [0], "{server:?}");
    }
}

async fn forward(listening: tokio::net::TcpListener, to: String) {
    while let Ok((mut client, _)) = listening.accept().await {
        let Ok(mut server) = tokio::net::TcpStream::connect(&to).await else {
            continue;
        };
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
    }
}
