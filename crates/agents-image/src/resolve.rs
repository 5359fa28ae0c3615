//! From a reference to folders on disk.

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use agents_core::error::{Error, ErrorKind, Result};
use tokio::task::JoinSet;

use crate::{
    archive::{Image, Source},
    digest::Digest,
    layer::{Job, LayerSpec, store_layer},
    manifest::ConfigFile,
    options::{Progress, PullPolicy, ResolveOptions},
    reference::{ArchiveFormat, ArchiveRef, ImageRef, RegistryRef, quoted},
    resolved::Resolved,
    store::{Fingerprint, ImageStore, LayerState, RefRecord, now},
};

/// How many layers are pulled or unpacked at once.
const PARALLEL: usize = 3;
const LOCK_POLL: Duration = Duration::from_millis(20);

pub(crate) async fn resolve(store: &ImageStore, image: &ImageRef, options: &ResolveOptions) -> Result<Resolved> {
    let resolved = match image {
        ImageRef::Host => Resolved::folder(Path::new("/"), "host".into()),
        ImageRef::Folder(path) => {
            let metadata = std::fs::metadata(path)
                .map_err(|error| Error::io(format!("cannot use the folder {} as an image", quoted(path)), error))?;
            if !metadata.is_dir() {
                return Err(Error::invalid(format!("{} is not a folder", quoted(path))));
            }
            Resolved::folder(path, image.to_string())
        }
        ImageRef::Archive(archive) => from_file(store, image, options, FileImage::Archive(archive.clone())).await?,
        ImageRef::Layout(path, tag) => {
            from_file(store, image, options, FileImage::Layout(path.clone(), tag.clone())).await?
        }
        ImageRef::Registry(reference) => from_registry(store, reference, options).await?,
    };
    options.report(Progress::Done);
    Ok(resolved)
}

#[derive(Clone)]
enum FileImage {
    Archive(ArchiveRef),
    Layout(std::path::PathBuf, Option<String>),
}

impl FileImage {
    /// The file whose change means that the image may have changed.
    fn watched(&self) -> std::path::PathBuf {
        match self {
            Self::Archive(archive) => archive.path.clone(),
            Self::Layout(path, _) => path.join("index.json"),
        }
    }

    fn key(&self, file: &Fingerprint) -> String {
        let (kind, name) = match self {
            Self::Archive(archive) => {
                let kind = match archive.format {
                    ArchiveFormat::Auto => "archive",
                    ArchiveFormat::Docker => "docker-archive",
                    ArchiveFormat::Oci => "oci-archive",
                };
                (kind, archive.name.as_deref())
            }
            Self::Layout(_, tag) => ("oci", tag.as_deref()),
        };
        format!("{kind}:{}:{}", quoted(file.path()), name.unwrap_or_default())
    }

    fn open(&self, job: &Job) -> Result<(Source, Image)> {
        match self {
            Self::Archive(archive) => {
                let source = Source::archive(job, &archive.path)?;
                let image = source.find(archive)?;
                Ok((source, image))
            }
            Self::Layout(path, tag) => {
                let source = Source::folder(path);
                let image = source.find_oci(tag.as_deref())?;
                Ok((source, image))
            }
        }
    }
}

async fn from_file(
    store: &ImageStore,
    reference: &ImageRef,
    options: &ResolveOptions,
    file: FileImage,
) -> Result<Resolved> {
    let shown = reference.to_string();
    let fingerprint = Fingerprint::of(&file.watched())
        .map_err(|error| Error::io(format!("cannot read the image {}", quoted(&shown)), error))?;
    let key = file.key(&fingerprint);
    if let Some(record) = store.read_ref(&key)?
        && record.file.as_ref() == Some(&fingerprint)
        && let Some(resolved) = load(store, &record, &shown).await?
    {
        return Ok(resolved);
    }

    options.report(Progress::Resolving);
    let job = Job::new(store, options.limits, options.progress.clone());
    let cancel = job.cancel_on_drop();
    let opening = (file.clone(), job.clone());
    let (source, image) = blocking(move || opening.0.open(&opening.1))
        .await
        .map_err(|e| e.with_context("image", &shown))?;
    let source = Arc::new(source);
    let files: std::collections::HashMap<Digest, String> = image
        .layers
        .iter()
        .zip(&image.files)
        .map(|(layer, file)| (layer.diff_id.clone(), file.clone()))
        .collect();
    if image.files.len() != image.layers.len() {
        return Err(damaged(format!(
            "the image {} names {} layers, and its configuration {}",
            quoted(&shown),
            image.files.len(),
            image.layers.len()
        )));
    }
    let lock = begin(store, &image, options)
        .await
        .map_err(|e| e.with_context("image", &shown))?;
    let fetch = {
        let (job, source) = (job.clone(), Arc::clone(&source));
        let files = Arc::new(files);
        move |mut spec: LayerSpec, lock: File| {
            let (job, source, files) = (job.clone(), Arc::clone(&source), Arc::clone(&files));
            async move {
                blocking(move || {
                    let name = files.get(&spec.diff_id).map(String::as_str).unwrap_or_default();
                    let (data, size) = source
                        .open(name)?
                        .ok_or_else(|| damaged(format!("the layer {} is missing from the image", spec.label)))?;
                    spec.size = Some(size);
                    store_layer(&job, &spec, data, lock)
                })
                .await
            }
        }
    };
    let fetched = all_layers(store, &image.layers, fetch)
        .await
        .map_err(|e| e.with_context("image", &shown))?;
    let record = RefRecord {
        key,
        source: shown.clone(),
        config: image.config.clone(),
        manifest: image.manifest.as_ref().map(|(digest, _)| digest.clone()),
        file: Some(fingerprint.clone()),
        created: now(),
    };
    let resolved = finish(store, record, image.manifest, &shown, fetched).await?;
    drop((lock, cancel));
    Ok(resolved)
}

#[cfg(not(feature = "registry"))]
async fn from_registry(store: &ImageStore, reference: &RegistryRef, options: &ResolveOptions) -> Result<Resolved> {
    if let Some(resolved) = from_store(store, reference, options).await? {
        return Ok(resolved);
    }
    Err(Error::unsupported(format!(
        "the image {reference} is not in the store, and this build cannot pull; build it with the feature registry of agents-image"
    )))
}

#[cfg(feature = "registry")]
async fn from_registry(store: &ImageStore, reference: &RegistryRef, options: &ResolveOptions) -> Result<Resolved> {
    if let Some(resolved) = from_store(store, reference, options).await? {
        return Ok(resolved);
    }
    options.report(Progress::Resolving);
    let shown = reference.to_string();
    let registry = Arc::new(crate::registry::Registry::connect(reference, options)?);
    let job = Job::new(store, options.limits, options.progress.clone());
    let cancel = job.cancel_on_drop();
    let image = registry.image(store).await?;
    let record = RefRecord {
        key: reference.key(),
        source: shown.clone(),
        config: image.config.clone(),
        manifest: image.manifest.as_ref().map(|(digest, _)| digest.clone()),
        file: None,
        created: now(),
    };
    let lock = begin(store, &image, options)
        .await
        .map_err(|e| e.with_context("image", &shown))?;
    let fetch = {
        let job = job.clone();
        move |spec: LayerSpec, lock: File| Arc::clone(&registry).layer(job.clone(), spec, lock)
    };
    let fetched = all_layers(store, &image.layers, fetch)
        .await
        .map_err(|e| e.with_context("image", &shown))?;
    let resolved = finish(store, record, image.manifest, &shown, fetched).await?;
    drop((lock, cancel));
    Ok(resolved)
}

/// What the store has for the name, where the policy lets that decide.
async fn from_store(store: &ImageStore, reference: &RegistryRef, options: &ResolveOptions) -> Result<Option<Resolved>> {
    // What a digest stands for cannot change, so there is nothing to ask for.
    if options.pull != PullPolicy::Always || reference.pinned().is_some() {
        let shown = reference.to_string();
        if let Some(record) = store.read_ref(&reference.key())?
            && let Some(resolved) = load(store, &record, &shown).await?
        {
            return Ok(Some(resolved));
        }
    }
    if options.pull == PullPolicy::Never {
        return Err(Error::not_found(format!(
            "the image {reference} is not in the store {}, and pulling is switched off; pull it first",
            quoted(store.root())
        )));
    }
    Ok(None)
}

/// The image of a record, if all of it is in the store.
pub(crate) async fn load(store: &ImageStore, record: &RefRecord, source: &str) -> Result<Option<Resolved>> {
    let guard = store.shared_async().await?;
    let Some(config) = store.read_config(&record.config)? else {
        return Ok(None);
    };
    let lock = store.use_image(&record.config)?;
    let mut layers = Vec::with_capacity(config.diff_ids().len());
    let mut seen = std::collections::HashSet::new();
    // Overlayfs refuses a folder that appears twice, and the lower one has no effect anyway.
    for diff_id in config.diff_ids().iter().rev() {
        match store.layer_state(diff_id) {
            LayerState::Missing => return Ok(None),
            state => {
                if seen.insert(diff_id) {
                    layers.push(store.layer_path(diff_id));
                }
                if state == LayerState::Opaque {
                    // Nothing below shows.
                    break;
                }
            }
        }
    }
    drop(guard);
    layers.reverse();
    Ok(Some(Resolved {
        layers,
        config: config.into_image_config(),
        digest: record.manifest.as_ref().map(Digest::to_string),
        image_id: Some(record.config.to_string()),
        source: source.to_owned(),
        warnings: Vec::new(),
        cached: true,
        lock: Some(lock),
    }))
}

/// Checks the image, keeps its layers from garbage collection and stores its configuration.
async fn begin(store: &ImageStore, image: &Image, options: &ResolveOptions) -> Result<Arc<File>> {
    ConfigFile::parse(&image.config_bytes)?.check(image.layers.len(), options.limits.max_layers)?;
    // Garbage collection learns from the configuration which layers a used image needs, so both must appear at once.
    let guard = store.shared_async().await?;
    let lock = store.use_image(&image.config)?;
    let (store, config, bytes) = (store.clone(), image.config.clone(), image.config_bytes.clone());
    blocking(move || {
        let _guard = guard;
        store.write_blob(&config, &bytes)
    })
    .await?;
    Ok(lock)
}

async fn finish(
    store: &ImageStore,
    record: RefRecord,
    manifest: Option<(Digest, Vec<u8>)>,
    shown: &str,
    fetched: Fetched,
) -> Result<Resolved> {
    let guard = store.shared_async().await?;
    {
        let (store, record) = (store.clone(), record.clone());
        blocking(move || {
            let _guard = guard;
            if let Some((digest, bytes)) = manifest {
                store.write_blob(&digest, &bytes)?;
            }
            store.write_ref(&record)
        })
        .await?;
    }
    let mut resolved = load(store, &record, shown).await?.ok_or_else(|| {
        Error::new(
            ErrorKind::Conflict,
            "layers of the image were removed while it was unpacked; try again",
        )
    })?;
    resolved.cached = fetched.layers == 0;
    resolved.warnings = fetched.warnings;
    Ok(resolved)
}

#[derive(Default)]
struct Fetched {
    layers: usize,
    warnings: Vec<String>,
}

/// Brings all layers into the store, some at once, each under a lock so that two processes do not do the same work.
async fn all_layers<F, W>(store: &ImageStore, specs: &[LayerSpec], fetch: F) -> Result<Fetched>
where
    F: Fn(LayerSpec, File) -> W + Clone + Send + Sync + 'static,
    W: Future<Output = Result<Vec<String>>> + Send,
{
    let mut seen = std::collections::HashSet::new();
    let mut waiting = specs
        .iter()
        .filter(|spec| seen.insert(&spec.diff_id) && !store.has_layer(&spec.diff_id));
    let mut tasks = JoinSet::new();
    let mut fetched = Fetched::default();
    loop {
        while tasks.len() < PARALLEL {
            let Some(spec) = waiting.next() else { break };
            fetched.layers += 1;
            let (store, fetch, spec) = (store.clone(), fetch.clone(), spec.clone());
            tasks.spawn(async move {
                let name = format!("layer-{}", spec.diff_id.hex());
                let lock = {
                    let _guard = store.shared_async().await?;
                    store.open_lock(&name).map_err(|error| store.failed("lock", error))?
                };
                loop {
                    if store.has_layer(&spec.diff_id) {
                        return Ok(Vec::new());
                    }
                    match lock.try_lock() {
                        Ok(()) if store.has_layer(&spec.diff_id) => return Ok(Vec::new()),
                        Ok(()) => return fetch(spec, lock).await,
                        Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(LOCK_POLL).await,
                        Err(std::fs::TryLockError::Error(error)) => return Err(store.failed("lock", error)),
                    }
                }
            });
        }
        match tasks.join_next().await {
            None => return Ok(fetched),
            Some(Ok(result)) => fetched.warnings.extend(result?),
            Some(Err(error)) => return Err(Error::unexpected("unpacking a layer failed").with_source(error)),
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::unexpected("work on the image store failed").with_source(error))?
}

fn damaged(message: String) -> Error {
    Error::new(ErrorKind::DataInvalid, message)
}
