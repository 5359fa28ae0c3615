//! OpenSearch: one node without plugins, small enough for a test machine and with short queues, so that tests
//! see it refuse work.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, Place, Server, account, cache, http};
use crate::error::{Context, Error, Result};
use crate::sh;

pub(super) static OPENSEARCH: OpenSearch = OpenSearch;

const VERSION: &str = "2.19.6";

/// The distribution that its authors publish for integration tests: without plugins and without Java.
const ARTIFACT: &str = "org.opensearch.distribution.integ-test-zip:opensearch";

const RECIPE: &str = "mvn dependency:get; unzip; 1";

const SETTINGS: &str = "\
discovery.type: single-node
thread_pool.write.size: 1
thread_pool.write.queue_size: 4
cluster.routing.allocation.disk.threshold_enabled: false
bootstrap.memory_lock: false
";

/// The server.
pub(super) struct OpenSearch;

impl Server for OpenSearch {
    fn name(&self) -> &'static str {
        "opensearch"
    }

    fn about(&self) -> &'static str {
        "OpenSearch 2.19 without TLS and users, with short queues"
    }

    fn default_tier(&self) -> bool {
        false
    }

    fn patience(&self) -> u64 {
        120
    }

    fn install(&self, cache: &Path) -> Result<PathBuf> {
        account::create()?;
        cache::once(
            &cache.join("opensearch"),
            VERSION,
            &format!("{RECIPE}; {ARTIFACT}"),
            |building| {
                println!("downloading OpenSearch {VERSION}");
                let repository = building.join("repository");
                sh::output(
                    Command::new(sh::need("mvn")?)
                        .args(["--batch-mode", "--quiet", "dependency:get", "-Dtransitive=false"])
                        .arg(format!("-Dmaven.repo.local={}", repository.display()))
                        .arg(format!("-Dartifact={ARTIFACT}:{VERSION}:zip"))
                        .current_dir(building),
                )?;
                let archive = repository
                    .join(ARTIFACT.replace(['.', ':'], "/"))
                    .join(VERSION)
                    .join(format!("opensearch-{VERSION}.zip"));
                sh::output(
                    Command::new(sh::need("unzip")?)
                        .arg("-q")
                        .arg(archive)
                        .arg("-d")
                        .arg(building),
                )?;
                Ok(building.join(format!("opensearch-{VERSION}")))
            },
        )
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let folder = account::make_folder(place)?;
        let home = folder.join("home");
        // The user cannot get into the cache; second names of its files cost nothing.
        let copy = |link: &str| {
            sh::output(
                Command::new("cp")
                    .args(["--recursive", "--no-target-directory", link])
                    .arg(&place.program)
                    .arg(&home),
            )
        };
        copy("--link").or_else(|_| copy("--preserve=mode"))?;
        let config = folder.join("config");
        sh::output(
            Command::new("cp")
                .arg("--recursive")
                .arg(home.join("config"))
                .arg(&config),
        )?;
        let file = config.join("opensearch.yml");
        let settings = format!(
            "{SETTINGS}network.host: 127.0.0.1\nhttp.port: {}\ntransport.port: 0\npath.data: {:?}\npath.logs: {:?}\n",
            place.port,
            folder.join("data"),
            folder.join("logs")
        );
        fs::write(&file, settings).context(|| format!("cannot write {}", file.display()))?;
        let options = config.join("jvm.options");
        let text = fs::read_to_string(&options).context(|| format!("cannot read {}", options.display()))?;
        fs::write(&options, without_files(&text)).context(|| format!("cannot write {}", options.display()))?;
        account::hand_over(&config)?;
        let mut command = account::command()?;
        command
            .arg(format!("OPENSEARCH_PATH_CONF={}", config.display()))
            .arg(format!("OPENSEARCH_JAVA_HOME={}", java()?.display()))
            .arg(format!("OPENSEARCH_TMPDIR={}", temporary(&folder)?.display()))
            .arg("OPENSEARCH_JAVA_OPTS=-Xms256m -Xmx256m")
            .arg(home.join("bin/opensearch"));
        Ok(Launch {
            command,
            env: vec![("AGENTS_TEST_OPENSEARCH", format!("http://127.0.0.1:{}", place.port))],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        http::status(place.port, "/_cluster/health?wait_for_status=yellow&timeout=1s") == Some(200)
    }

    fn clean(&self, place: &Place) -> Result<()> {
        account::remove_folder(place)
    }
}

/// Java's options but those for files that it would write into the program's own folder.
fn without_files(options: &str) -> String {
    options
        .lines()
        .filter(|line| !line.contains("logs/") && !line.contains("HeapDumpPath"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn temporary(folder: &Path) -> Result<PathBuf> {
    let temporary = folder.join("tmp");
    fs::create_dir_all(&temporary).context(|| format!("cannot create {}", temporary.display()))?;
    account::hand_over(&temporary)?;
    Ok(temporary)
}

/// The home of a Java that this version runs on, wherever `java` is the link of.
fn java() -> Result<PathBuf> {
    let program = sh::need("java")?;
    let program = program
        .canonicalize()
        .context(|| format!("cannot resolve {}", program.display()))?;
    program
        .ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .ok_or_else(|| Error::new(format!("{} is in no Java home", program.display())))
}
