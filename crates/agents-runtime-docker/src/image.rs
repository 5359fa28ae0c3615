//! Images: their names, and how they get to the engine.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use agents_core::{Error, ErrorKind, ImagePullPolicy, ProgressListener, ProvisionProgress, ProvisionRequest, Result};
use bollard::{models::CreateImageInfo, query_parameters::CreateImageOptionsBuilder};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::{DockerConfig, auth, endpoint::Environment, engine::Engine, error, inspect::Image};

/// A name of an image, with docker's defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageName {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
    /// An image's own identifier names nothing in a registry.
    id: bool,
}

impl ImageName {
    /// Reads a name strictly, since it becomes a part of a path: nothing of it may lead elsewhere.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let fault = |what: &str| {
            Error::invalid(format!(
                "the image {text:?} {what}; write a name such as python:3.11-slim or registry.example/team/tool@sha256:…"
            ))
        };
        if text.starts_with('/') || text.starts_with('.') {
            return Err(fault(
                "is a path, and docker takes images by name: load it into the engine first",
            ));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if let Some(digest) = digest
            && !is_sha256(digest)
        {
            return Err(fault("has a digest that is not sha256: and 64 hexadecimal digits"));
        }
        if is_sha256(rest) {
            return Ok(Self {
                registry: String::new(),
                repository: rest.to_owned(),
                tag: None,
                digest: None,
                id: true,
            });
        }
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
            if tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !tag.chars().all(word) {
                return Err(fault("has an odd tag"));
            }
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            Some(_) => ("docker.io", path.to_owned()),
            None => ("docker.io", format!("library/{path}")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
        if !registry.chars().all(plain) || registry.starts_with('-') {
            return Err(fault("has an odd registry"));
        }
        let component = |part: &str| {
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
            part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && part.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && part.chars().all(inner)
        };
        if !repository.split('/').all(component) {
            return Err(fault("has an odd name; names are lower case"));
        }
        Ok(Self {
            registry: if registry == "index.docker.io" {
                "docker.io"
            } else {
                registry
            }
            .to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
            id: false,
        })
    }

    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// Whether this pins one content, which nothing that is built can have.
    pub(crate) fn is_pinned(&self) -> bool {
        self.id || self.digest.is_some()
    }

    /// The name as the engine takes it. With a digest the tag says nothing, and engines of old refuse both.
    pub(crate) fn reference(&self) -> String {
        if self.id {
            return self.repository.clone();
        }
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.repository_name()),
            (None, tag) => format!("{}:{}", self.repository_name(), tag.as_deref().unwrap_or("latest")),
        }
    }

    fn repository_name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

fn is_sha256(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64 && digits.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    })
}

/// How images are fetched.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    config_folder: Option<PathBuf>,
    pub(crate) platform: Option<String>,
    pub(crate) pull_timeout: Duration,
}

impl Images {
    pub(crate) fn new(config: &DockerConfig) -> Self {
        Self {
            config_folder: Environment::OWN.config_folder(config),
            platform: config.platform.clone(),
            pull_timeout: Duration::from_secs_f64(config.pull_timeout_seconds),
        }
    }

    /// The image on the engine, fetched when the request says so.
    pub(crate) async fn resolve(&self, engine: &Engine, request: &ProvisionRequest) -> Result<Image> {
        let name = ImageName::parse(&request.image)?;
        let tell = |progress| {
            if let Some(listener) = &request.progress {
                listener.tell(progress);
            }
        };
        tell(ProvisionProgress::Resolving {
            image: request.image.clone(),
        });
        let here = if request.pull_policy == ImagePullPolicy::Always && !name.id {
            None
        } else {
            self.here(engine, &name).await?
        };
        let image = match here {
            Some(image) => image,
            None if request.pull_policy == ImagePullPolicy::Never || name.id => {
                return Err(Error::not_found(format!(
                    "the image {} is not on the engine, and is not fetched; pull it, or set image_pull_policy to missing",
                    request.image
                )));
            }
            None => {
                self.pull(engine, &name, request.progress.as_ref()).await?;
                self.here(engine, &name).await?.ok_or_else(|| {
                    Error::not_found(format!(
                        "the image {} was fetched and is not there; somebody removed it",
                        request.image
                    ))
                })?
            }
        };
        if image.os != "linux" && !image.os.is_empty() {
            return Err(Error::unsupported(format!(
                "the image {} is for {}, not for linux",
                request.image, image.os
            )));
        }
        if let Some(platform) = &self.platform {
            let wanted: Vec<_> = platform.split('/').collect();
            if wanted.get(1).is_some_and(|wanted| *wanted != image.architecture) {
                return Err(Error::not_found(format!(
                    "the image {} on the engine is for {}, and platform says {platform}; pull it for that platform",
                    request.image, image.architecture
                )));
            }
        }
        tell(ProvisionProgress::ImageReady);
        Ok(image)
    }

    async fn here(&self, engine: &Engine, name: &ImageName) -> Result<Option<Image>> {
        match engine.image(&name.reference()).await {
            Ok(image) => Ok(Some(image)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn pull(&self, engine: &Engine, name: &ImageName, listener: Option<&ProgressListener>) -> Result<()> {
        let what = format!("cannot fetch the image {}", name.reference());
        let credentials = auth::find(self.config_folder.as_deref(), name).await?;
        let mut options = CreateImageOptionsBuilder::new().from_image(&name.repository_name());
        options = match (&name.digest, &name.tag) {
            (Some(digest), _) => options.tag(digest),
            (None, tag) => options.tag(tag.as_deref().unwrap_or("latest")),
        };
        if let Some(platform) = &self.platform {
            options = options.platform(platform);
        }
        let late = || error::late(&what, Some(self.pull_timeout));
        let end = tokio::time::Instant::now() + self.pull_timeout;
        let mut messages = engine.docker().create_image(Some(options.build()), None, credentials);
        let mut layers = Layers::default();
        loop {
            // An engine that says nothing for so long hangs; a registry that is slow makes it say so.
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            let silence = left.min(engine.deadline().max(Duration::from_secs(60)));
            match timeout(silence, messages.next()).await {
                Err(_) => return Err(late()),
                Ok(None) => return Ok(()),
                Ok(Some(Err(fault))) => return Err(error::map(&what, fault)),
                Ok(Some(Ok(message))) => {
                    if let (Some(listener), Some(progress)) = (listener, layers.progress(&message)) {
                        listener.tell(progress);
                    }
                }
            }
        }
    }
}

/// What is known of the layers so far: the engine gives a layer's size only while it is fetched.
#[derive(Default)]
struct Layers(BTreeMap<String, u64>);

impl Layers {
    fn progress(&mut self, message: &CreateImageInfo) -> Option<ProvisionProgress> {
        let layer = message.id.clone()?;
        let detail = message.progress_detail.as_ref();
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
        match message.status.as_deref()? {
            "Pulling fs layer" => Some(ProvisionProgress::Pulling {
                layer,
                done: 0,
                total: None,
            }),
            "Downloading" => {
                let total = number(detail.and_then(|detail| detail.total)).filter(|total| *total > 0);
                if let Some(total) = total {
                    self.0.insert(layer.clone(), total);
                }
                Some(ProvisionProgress::Pulling {
                    done: number(detail.and_then(|detail| detail.current)).unwrap_or(0),
                    total,
                    layer,
                })
            }
            "Download complete" => {
                let total = self.0.get(&layer).copied()?;
                Some(ProvisionProgress::Pulling {
                    done: total,
                    total: Some(total),
                    layer,
                })
            }
            "Extracting" => Some(ProvisionProgress::Unpacking { layer }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_dockers_defaults() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let pinned = format!("python:3@{digest}");
        let pinned_reference = format!("docker.io/library/python@{digest}");
        for (text, reference) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("a/b:1", "docker.io/a/b:1"),
            ("localhost/x", "localhost/x:latest"),
            ("r.example:5000/a/b", "r.example:5000/a/b:latest"),
            (&pinned, &pinned_reference),
            (&digest, &digest),
        ] {
            assert_eq!(ImageName::parse(text).unwrap().reference(), reference, "{text}");
        }
    }

    #[test]
    fn nothing_in_a_name_leads_elsewhere() {
        let long = format!("a:{}", "t".repeat(129));
        for bad in [
            "--privileged",
            "/no/such/image",
            "../x",
            "a/../b",
            "a//b",
            "a/./b",
            "a?b",
            "a#b",
            "a b",
            "a%2fb",
            "A",
            "a:",
            "a:-x",
            "a@sha256:1",
            "a@md5:00000000000000000000000000000000",
            "r.example/",
            "",
            &long,
        ] {
            let error = ImageName::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{bad}");
        }
    }

    #[test]
    fn progress_is_told_by_layer() {
        let message = |text: &str| serde_json::from_str::<CreateImageInfo>(text).unwrap();
        let mut layers = Layers::default();
        let told = layers.progress(&message(
            r#"{"status":"Downloading","progressDetail":{"current":5,"total":10},"id":"abc"}"#,
        ));
        let pulling = |done| ProvisionProgress::Pulling {
            layer: "abc".to_owned(),
            done,
            total: Some(10),
        };
        assert_eq!(told, Some(pulling(5)));
        let told = layers.progress(&message(
            r#"{"status":"Download complete","progressDetail":{},"id":"abc"}"#,
        ));
        assert_eq!(told, Some(pulling(10)));
        assert_eq!(
            layers.progress(&message(r#"{"status":"Pulling from library/x","id":"latest"}"#)),
            None
        );
    }
}
