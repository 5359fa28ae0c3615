//! Resolves an image and prints its layers: `cargo run -p agents-image --example resolve -- IMAGE [STORE]`.

use std::{sync::Arc, time::Instant};

use agents_image::{ImageRef, ImageStore, Progress, ResolveOptions, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let image = ImageRef::parse(&arguments.next().unwrap_or_default())?;
    let folder = arguments
        .next()
        .map_or_else(|| std::env::temp_dir().join("agents-image-example"), Into::into);
    let store = ImageStore::open(folder)?;
    let progress = |progress| match progress {
        Progress::Layer { digest, total, done } if total == Some(done) => println!("{digest}: {done} bytes"),
        Progress::Unpacking { digest } => println!("{digest}: unpacking"),
        _ => {}
    };
    let start = Instant::now();
    let resolved = store
        .resolve(&image, &ResolveOptions::new().with_progress(Arc::new(progress)))
        .await?;
    println!(
        "{} in {:?}, cached: {}",
        resolved.source,
        start.elapsed(),
        resolved.cached
    );
    for layer in &resolved.layers {
        println!("  {}", layer.display());
    }
    for warning in &resolved.warnings {
        println!("  left out: {warning}");
    }
    Ok(())
}
