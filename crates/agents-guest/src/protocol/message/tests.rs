//! Tests of the messages.

use proptest::prelude::*;

use super::*;
use crate::protocol::Decoder;

fn there_and_back(message: &ToGuest) -> ToGuest {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    let (kind, payload) = decoder.next_message().unwrap().unwrap();
    ToGuest::decode(kind, payload).unwrap()
}

fn back_and_there(message: &FromGuest) -> FromGuest {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    let (kind, payload) = decoder.next_message().unwrap().unwrap();
    FromGuest::decode(kind, payload).unwrap()
}

#[test]
fn what_is_secret_is_not_printed() {
    let secret = ToGuest::Secrets(vec![("token".to_owned(), b"hunter2".to_vec())]);
    assert_eq!(format!("{secret:?}"), "Secrets");
    assert_eq!(there_and_back(&secret), secret);
}

#[test]
fn every_message_of_the_guest_survives() {
    let ended = |status| {
        FromGuest::Exit(Ended {
            status,
            out_of_memory: Some(false),
            pids_limit: None,
            disk_full: true,
        })
    };
    for message in [
        FromGuest::Report(vec![("a".to_owned(), "b".repeat(200_000))]),
        FromGuest::Done,
        FromGuest::Failed(Failure {
            kind: FailureKind::ResourceExhausted,
            message: "full".to_owned(),
        }),
        FromGuest::Started(Started {
            pid: 7,
            stdin: true,
            tty: false,
        }),
        FromGuest::Stdout(vec![0, 255]),
        FromGuest::Stderr(Vec::new()),
        FromGuest::Data(vec![1]),
        FromGuest::InputTaken(9),
        FromGuest::InputClosed,
        FromGuest::State(State::Exited),
        ended(Status::Code(255)),
        ended(Status::Signal(9)),
        ended(Status::NotFound("x".to_owned())),
        ended(Status::NotExecutable("x".to_owned())),
        ended(Status::Refused("x".to_owned())),
    ] {
        assert_eq!(back_and_there(&message), message);
    }
}

#[test]
fn states_are_told_by_the_name_of_the_first_process() {
    for state in State::ALL {
        assert_eq!(State::of_comm(&format!("{}\n", state.comm())), Some(state));
        // The kernel cuts longer names, prctl(2).
        assert!(state.comm().len() <= 15);
    }
    assert_eq!(State::of_comm("sh\n"), None);
}

proptest! {
    #[test]
    fn every_message_of_the_host_survives(
        command in proptest::collection::vec(".*", 0..5),
        env in proptest::collection::vec((".*", ".*"), 0..5),
        working_dir in proptest::option::of(".*"),
        stdin: bool,
        tty in proptest::option::of(any::<(u16, u16)>()),
        outlives_client: bool,
        input in proptest::collection::vec(any::<u8>(), 0..1000),
        number: u32,
    ) {
        let spawn = Spawn { command, env, working_dir, stdin, tty };
        for message in [
            ToGuest::Prepare(spawn.clone()),
            ToGuest::Start { outlives_client },
            ToGuest::Spawn(spawn),
            ToGuest::Input(input),
            ToGuest::CloseInput,
            ToGuest::Signal(number),
            ToGuest::Kill,
            ToGuest::Resize { rows: 1, columns: u16::MAX },
        ] {
            prop_assert_eq!(there_and_back(&message), message);
        }
    }

    #[test]
    fn hostile_payloads_are_decoded_or_refused(kind: u8, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = FromGuest::decode(kind, payload.clone());
        let _ = ToGuest::decode(kind, payload);
    }
}
