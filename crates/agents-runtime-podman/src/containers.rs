//! The engine's calls about containers.

use std::collections::BTreeMap;

use agents_core::{Error, ErrorKind, Result};
use agents_guest::Connection;
use hyper::Method;
use serde_json::{Value, json};

use crate::{
    client::{Call, Client},
    model::View,
    stream::{Complaint, Output},
};

/// A connection to the guest program, with what the engine or its runtime complains of beside.
pub(crate) struct Attached {
    pub(crate) connection: Connection,
    pub(crate) complaint: Complaint,
}

impl Client {
    /// Creates a container and gives its identifier.
    pub(crate) async fn create(&self, name: &str, specification: &Value) -> Result<String> {
        let call = Call::post("create the container", &["containers", "create"]).json(specification)?;
        let answer: View = self.json(call).await.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                Error::new(ErrorKind::AlreadyExists, format!("there is a container {name} already")).with_source(error)
            }
            // Without more words, a conflict is about the name.
            ErrorKind::Conflict if error.message().contains("name") => {
                Error::new(ErrorKind::AlreadyExists, format!("there is a container {name} already")).with_source(error)
            }
            _ => error,
        })?;
        for warning in answer.texts("/Warnings") {
            tracing::warn!(container = name, warning = %crate::error::shown(&warning), "podman warns");
        }
        answer
            .text("/Id")
            .filter(|id| !id.is_empty())
            .map(str::to_owned)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::DataInvalid,
                    "podman created a container without an identifier",
                )
            })
    }

    /// Attaches to the container's first process, which makes the container ready to start.
    pub(crate) async fn attach(&self, id: &str) -> Result<Attached> {
        let call = Call::post("attach to the container", &["containers", id, "attach"])
            .query("stream", "true")
            .query("stdin", "true")
            .query("stdout", "true")
            .query("stderr", "true")
            .query("logs", "false");
        self.attached(call).await
    }

    pub(crate) async fn start(&self, id: &str) -> Result<()> {
        self.call(Call::post("start the container", &["containers", id, "start"]))
            .await?;
        Ok(())
    }

    /// Runs a command of the guest program in the container.
    pub(crate) async fn exec(&self, id: &str, command: &[String]) -> Result<Attached> {
        let body = json!({
            "Cmd": command,
            "AttachStdin": true,
            "AttachStdout": true,
            "AttachStderr": true,
            "Tty": false,
            "Privileged": false,
            "WorkingDir": "/",
        });
        let call = Call::post("run a process in the container", &["containers", id, "exec"]).json(&body)?;
        let answer: View = self.json(call).await?;
        let exec = answer
            .text("/Id")
            .ok_or_else(|| Error::new(ErrorKind::DataInvalid, "podman made an exec without an identifier"))?;
        let call = Call::post("run a process in the container", &["exec", exec, "start"])
            .json(&json!({ "Detach": false, "Tty": false }))?;
        self.attached(call).await
    }

    async fn attached(&self, call: Call) -> Result<Attached> {
        let (reader, writer) = tokio::io::split(self.upgrade(call).await?);
        let (output, complaint) = Output::new(reader);
        Ok(Attached {
            connection: Connection::new(output, writer),
            complaint,
        })
    }

    pub(crate) async fn inspect(&self, id: &str) -> Result<View> {
        self.json(Call::get("look at the container", &["containers", id, "json"]))
            .await
    }

    /// The containers with all of the labels, in any state.
    pub(crate) async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<View>> {
        let wanted: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        self.list_with(&wanted).await
    }

    /// The containers with all of the labels, each a key or a key with a value.
    pub(crate) async fn list_with(&self, labels: &[String]) -> Result<Vec<View>> {
        let call = Call::get("list the containers", &["containers", "json"])
            .query("all", "true")
            .query("filters", json!({ "label": labels }).to_string());
        // Without containers some engines answer null.
        Ok(self.json::<Option<Vec<View>>>(call).await?.unwrap_or_default())
    }

    /// Kills every process of the container. One that is not running has none.
    pub(crate) async fn kill(&self, id: &str) -> Result<()> {
        let call = Call::post("kill the container", &["containers", id, "kill"]).query("signal", "KILL");
        match self.call(call).await {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => Err(error),
            _ => Ok(()),
        }
    }

    /// Kills and removes the container with its anonymous volumes, at once. Succeeds when it is gone.
    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        let call = Call::new(Method::DELETE, "remove the container", &["containers", id])
            .query("force", "true")
            .query("timeout", "0")
            .query("v", "true")
            .query("ignore", "true");
        match self.call(call).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The container's counters.
    pub(crate) async fn counters(&self, id: &str) -> Result<View> {
        let call = Call::get("read the container's counters", &["containers", "stats"])
            .query("containers", id)
            .query("stream", "false");
        let answer: View = self.json(call).await?;
        if let Some(message) = answer.text("/Error/Message").or_else(|| answer.text("/Error")) {
            return Err(Error::unexpected(format!(
                "podman cannot read the container's counters: {}",
                crate::error::shown(message)
            )));
        }
        answer.items("/Stats").next().ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                "podman has no counters of the container: it is not running",
            )
        })
    }
}
