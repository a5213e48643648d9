//! `lockstep status`: what an operator looks at first, asked of running nodes over their sockets.

use super::client::{Client, ClientError};
use super::error::METHOD_NOT_FOUND;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What one node says of itself.
pub struct NodeStatus {
    socket: PathBuf,
    answer: Result<Value, ClientError>,
}

impl NodeStatus {
    /// Asks the node that serves `socket`.
    pub fn ask(socket: &Path) -> NodeStatus {
        NodeStatus { socket: socket.to_path_buf(), answer: ask(socket) }
    }

    /// Whether it answered.
    pub fn is_up(&self) -> bool {
        self.answer.is_ok()
    }

    /// As it is printed with `--json`.
    pub fn to_json(&self) -> Value {
        let socket = self.socket.display().to_string();
        match &self.answer {
            Ok(answer) => {
                let mut shown = answer.clone();
                shown["socket"] = json!(socket);
                shown
            }
            Err(error) => json!({"socket": socket, "error": error.to_string()}),
        }
    }

    /// As it is printed for people.
    pub fn to_text(&self) -> String {
        let socket = self.socket.display();
        match &self.answer {
            Ok(answer) => format!("node {socket}: {}", describe(answer)),
            Err(error) => format!("node {socket}: DOWN: {error}\n"),
        }
    }
}

fn ask(socket: &Path) -> Result<Value, ClientError> {
    let mut client = Client::connect(socket)?;
    let mut call = |method: &str| match client.call(method, None) {
        // A node of another version may lack a method; what it has is shown all the same.
        Err(ClientError::Refused { code, .. }) if code == i64::from(METHOD_NOT_FOUND) => Ok(Value::Null),
        outcome => outcome,
    };
    Ok(json!({
        "version": call("spdk_get_version")?["version"].take(),
        "reactors": call("framework_get_reactors")?,
        "memory": call("iobuf_get_stats")?,
        "groups": call("replication_get_groups")?,
        "bdevs": call("bdev_get_bdevs")?,
        "iostat": call("bdev_get_iostat")?,
        "subsystems": call("nvmf_get_subsystems")?,
        "nvmf": call("nvmf_get_stats")?,
    }))
}

fn describe(answer: &Value) -> String {
    let mut text = format!("{}, process {}\n", word(&answer["version"]), word(&answer["reactors"]["pid"]));
    for (title, table) in [
        ("reactors", reactors(answer)),
        ("replication groups", groups(answer)),
        ("block devices", bdevs(answer)),
        ("NVMe-oF subsystems", subsystems(answer)),
    ] {
        if table.len() > 1 {
            write_table(&mut text, title, &table);
        }
    }
    for group in list(&answer["groups"]) {
        if let Some(progress) = copy_progress(&group["sync"]) {
            let _ = writeln!(text, "  group {}: {progress}", word(&group["name"]));
        }
        if let Some(history) = history(&group["history"]) {
            let _ = writeln!(text, "  group {}: {history}", word(&group["name"]));
        }
        for volume in list(&group["volumes"]) {
            if let Some(progress) = copy_progress(&volume["fill"]) {
                let _ = writeln!(
                    text,
                    "  group {}: disk of {}: {progress}",
                    word(&group["name"]),
                    word(&volume["name"])
                );
            }
        }
        if group["verify"].is_object() {
            let _ = writeln!(text, "  group {}: {}", word(&group["name"]), verify(&group["verify"]));
        }
        if let Some(error) = group["error"].as_str() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  group {}: {error}", word(&group["name"]));
        }
    }
    text
}

/// How far the disks have been made equal, if that is under way.
fn copy_progress(sync: &Value) -> Option<String> {
    let (left, total) = (sync["left_bytes"].as_u64()?, sync["total_bytes"].as_u64()?);
    let rate = size(number(&sync["bytes_per_second"]));
    if sync["paused"] == true {
        return Some(format!(
            "copying paused, {} of {} left: replication_sync_resume goes on",
            size(left),
            size(total)
        ));
    }
    let end =
        sync["seconds_left"].as_u64().map_or("end unknown".to_string(), |s| format!("about {s} s left"));
    Some(format!("copying, {} of {} left, {rate}/s, {end}", size(left), size(total)))
}

/// The checkpoints that can be shown, if any are kept.
fn history(history: &Value) -> Option<String> {
    let epochs = list(&history["epochs"]);
    let (oldest, newest) = (epochs.first()?, epochs.last()?);
    let exported = epochs.iter().filter(|epoch| !list(&epoch["bdevs"]).is_empty()).count();
    let (used, limit) = (size(number(&history["used_bytes"])), size(number(&history["limit_bytes"])));
    let mut text = format!(
        "{} checkpoints can be shown, epochs {} to {}, {used} of {limit}",
        epochs.len(),
        word(&oldest["epoch"]),
        word(&newest["epoch"]),
    );
    if exported > 0 {
        let _ = write!(text, ", {exported} as bdevs");
    }
    Some(text)
}

fn reactors(answer: &Value) -> Vec<Vec<String>> {
    let mut table = vec![row(["CORE", "BUSY", "IDLING", "MEMORY"])];
    let memory = list(&answer["memory"]);
    for reactor in list(&answer["reactors"]["reactors"]) {
        let (busy, idle) = (number(&reactor["busy"]), number(&reactor["idle"]));
        let percent = 100.0 * busy as f64 / (busy + idle).max(1) as f64;
        let name = format!("reactor_{}", word(&reactor["lcore"]));
        let pool = memory.iter().find(|module| module["module"] == name.as_str());
        let bytes = pool.map_or(0, |pool| number(&pool["chunks"]) * number(&pool["chunk_bytes"]));
        table.push(vec![
            word(&reactor["lcore"]),
            format!("{percent:.1} %"),
            word(&reactor["idle_mode"]),
            size(bytes),
        ]);
    }
    table
}

fn groups(answer: &Value) -> Vec<Vec<String>> {
    let mut table = vec![row([
        "GROUP",
        "ROLE",
        "STATE",
        "EPOCH",
        "COMMITTED",
        "GENERATION",
        "ACK",
        "LAG",
        "SENT",
        "UNDO",
        "OVERLAY",
        "LIMIT",
        "VOLUMES",
    ])];
    for group in list(&answer["groups"]) {
        let buffer = &group["buffer"];
        let volumes: Vec<String> =
            list(&group["volumes"]).iter().map(|volume| word(&volume["name"])).collect();
        table.push(vec![
            word(&group["name"]),
            word(&group["role"]),
            word(&group["state"]),
            word(&group["epoch"]),
            word(&group["committed_epoch"]),
            word(&group["generation"]),
            word(&group["ack"]),
            optional_size(&group["lag_bytes"]),
            optional_size(&group["sent_bytes"]),
            optional_size(&buffer["undo_bytes"]),
            optional_size(&buffer["overlay_bytes"]),
            optional_size(&buffer["limit_bytes"]),
            volumes.join(" "),
        ]);
    }
    table
}

/// An online verify in a line, and a line for each difference that is known.
fn verify(verify: &Value) -> String {
    let size_of = |name: &str| size(number(&verify[name]));
    let mut text = format!(
        "verify {}: {} of {} compared, {}/s",
        word(&verify["state"]),
        size_of("checked_bytes"),
        size_of("total_bytes"),
        size_of("bytes_per_second")
    );
    if let Some(seconds) = verify["seconds_left"].as_u64() {
        let _ = write!(text, ", {seconds} s left");
    }
    let _ = write!(text, ", {} differ", size_of("differing_bytes"));
    if let Some(error) = verify["error"].as_str() {
        let _ = write!(text, ": {error}");
    }
    for found in list(&verify["differences"]) {
        let (bytes, offset) = (number(&found["bytes"]), number(&found["offset"]));
        let _ = write!(text, "\n    {}: {bytes} bytes from {offset} differ", word(&found["volume"]));
    }
    if verify["differences_complete"] == false {
        text.push_str("\n    and more");
    }
    text
}

fn bdevs(answer: &Value) -> Vec<Vec<String>> {
    let mut table =
        vec![row(["BDEV", "KIND", "SIZE", "BLOCK", "ACCESS", "READ", "WRITTEN", "FAILED", "USED BY"])];
    let counted = list(&answer["iostat"]["bdevs"]);
    for bdev in list(&answer["bdevs"]) {
        let stats = counted.iter().find(|stats| stats["name"] == bdev["name"]).unwrap_or(&Value::Null);
        table.push(vec![
            word(&bdev["name"]),
            word(&bdev["product_name"]),
            size(number(&bdev["num_blocks"]) * number(&bdev["block_size"])),
            word(&bdev["block_size"]),
            word(&bdev["access"]),
            size(number(&stats["bytes_read"])),
            size(number(&stats["bytes_written"])),
            number(&stats["io_error"]["failed"]).to_string(),
            word(&bdev["claimed_by"]),
        ]);
    }
    table
}

fn subsystems(answer: &Value) -> Vec<Vec<String>> {
    let mut table = vec![row(["SUBSYSTEM", "NAMESPACES", "LISTENERS"])];
    for subsystem in list(&answer["subsystems"]).iter().filter(|shown| shown["subtype"] == "NVMe") {
        let namespaces: Vec<String> = list(&subsystem["namespaces"])
            .iter()
            .map(|namespace| format!("{}:{}", word(&namespace["nsid"]), word(&namespace["bdev_name"])))
            .collect();
        let listeners: Vec<String> = list(&subsystem["listen_addresses"])
            .iter()
            .map(|address| format!("{}:{}", word(&address["traddr"]), word(&address["trsvcid"])))
            .collect();
        table.push(vec![word(&subsystem["nqn"]), namespaces.join(" "), listeners.join(" ")]);
    }
    table
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_string).to_vec()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// A scalar as a word; `-` for what is not there.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_string(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn optional_size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_string(), size)
}

/// Bytes with three digits that tell.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || scaled.fract() == 0.0 { 0 } else { 1 };
    format!("{scaled:.digits$} {}", UNITS[unit])
}

/// Columns as wide as their widest cell.
fn write_table(text: &mut String, title: &str, table: &[Vec<String>]) {
    let columns = table.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| table.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0))
        .collect();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "  {title}");
    for cells in table {
        let line: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        let _ = writeln!(text, "    {}", line.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let shown = [0, 1023, 1024, 1536, 64 << 20, 3 << 40].map(size);
        assert_eq!(shown, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "64 MiB", "3 TiB"]);
    }

    #[test]
    fn a_copy_tells_how_far_it_is() {
        assert_eq!(copy_progress(&Value::Null), None);
        let sync = json!({"left_bytes": 3 << 20, "total_bytes": 8 << 20, "bytes_per_second": 1 << 20, "seconds_left": 3});
        assert_eq!(
            copy_progress(&sync).as_deref(),
            Some("copying, 3 MiB of 8 MiB left, 1 MiB/s, about 3 s left")
        );
        let paused =
            json!({"left_bytes": 3 << 20, "total_bytes": 8 << 20, "bytes_per_second": 7, "paused": true});
        let text = copy_progress(&paused).unwrap_or_default();
        assert!(text.starts_with("copying paused, 3 MiB of 8 MiB left"), "{text}");
        let begun = json!({"left_bytes": 1, "total_bytes": 1, "bytes_per_second": 0, "seconds_left": null});
        assert_eq!(copy_progress(&begun).as_deref(), Some("copying, 1 B of 1 B left, 0 B/s, end unknown"));
    }

    #[test]
    fn checkpoints_that_can_be_shown_are_told_in_a_line() {
        assert_eq!(history(&Value::Null), None);
        let kept = json!({"used_bytes": 3 << 20, "limit_bytes": 8 << 20, "epochs": [
            {"epoch": 4, "bdevs": ["before"]}, {"epoch": 6, "bdevs": []}, {"epoch": 7, "bdevs": []}]});
        let expected = "3 checkpoints can be shown, epochs 4 to 7, 3 MiB of 8 MiB, 1 as bdevs";
        assert_eq!(history(&kept).as_deref(), Some(expected));
    }

    #[test]
    fn a_node_that_is_down_is_said_to_be_down() {
        let status = NodeStatus::ask(Path::new("/nonexistent/rpc.sock"));
        assert!(!status.is_up());
        assert!(status.to_text().contains("DOWN"));
        assert!(status.to_json()["error"].is_string());
    }

    #[test]
    fn the_table_shows_groups_devices_and_what_went_wrong() {
        let answer = json!({
            "version": "Lockstep v1", "reactors": {"pid": 7, "reactors": [
                {"lcore": 0, "busy": 1, "idle": 3, "idle_mode": "adaptive"}]},
            "memory": [{"module": "reactor_0", "chunks": 2, "chunk_bytes": 2 << 20}],
            "groups": [{"name": "g0", "role": "primary", "state": "running", "epoch": 5, "committed_epoch": 4,
                "generation": 1, "ack": "applied", "lag_bytes": 4096, "sent_bytes": 8192, "volumes": [{"name": "v0"}],
                "verify": {"state": "running", "checked_bytes": 1 << 20, "total_bytes": 4 << 20, "bytes_per_second": 1 << 20,
                    "seconds_left": 3, "differing_bytes": 8192, "differences": [
                        {"volume": "v0", "offset": 65536, "bytes": 8192}], "differences_complete": false},
                "error": "the peer is gone"}],
            "bdevs": [{"name": "Disk0", "product_name": "Malloc disk", "num_blocks": 2048, "block_size": 512,
                "access": "optimized", "claimed_by": "group g0"}],
            "iostat": {"bdevs": [{"name": "Disk0", "bytes_read": 512, "bytes_written": 0, "io_error": {"failed": 3}}]},
            "subsystems": [{"nqn": "nqn.x", "subtype": "NVMe", "namespaces": [{"nsid": 1, "bdev_name": "v0"}],
                "listen_addresses": [{"traddr": "127.0.0.1", "trsvcid": "4420"}]}],
        });
        let text = describe(&answer);
        for word in [
            "25.0 %",
            "g0",
            "running",
            "4 KiB",
            "1 MiB of 4 MiB compared, 1 MiB/s, 3 s left, 8 KiB differ",
            "v0: 8192 bytes from 65536 differ",
            "and more",
            "the peer is gone",
            "1 MiB",
            "group g0",
            "127.0.0.1:4420",
        ] {
            assert!(text.contains(word), "{word} is missing:\n{text}");
        }
    }
}
