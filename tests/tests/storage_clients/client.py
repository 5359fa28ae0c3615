"""The vendors' own Python clients, as a second opinion on what the SDK stores.

usage: client.py azure|gcs get KEY | head KEY | put KEY CONTENT_TYPE METADATA | mirror FROM TO

The content comes from standard input or goes to standard output. Where the service is comes from the environment.
"""

import json
import os
import sys


def variable(name):
    return os.environ[name]


class Azure:
    def __init__(self):
        from azure.storage.blob import BlobServiceClient, ContentSettings

        self.settings = ContentSettings
        account = {
            "account_name": variable("AGENTS_TEST_AZURITE_ACCOUNT"),
            "account_key": variable("AGENTS_TEST_AZURITE_KEY"),
        }
        service = BlobServiceClient(variable("AGENTS_TEST_AZURITE"), account)
        self.container = service.get_container_client(variable("AGENTS_TEST_AZURITE_CONTAINER"))

    def get(self, key):
        return self.container.download_blob(key).readall()

    def head(self, key):
        found = self.container.get_blob_client(key).get_blob_properties()
        return found.content_settings.content_type, dict(found.metadata)

    def put(self, key, content, content_type, metadata):
        settings = self.settings(content_type=content_type)
        self.container.upload_blob(key, content, metadata=metadata, content_settings=settings, overwrite=True)

    def mirror(self, source, target):
        for found in list(self.container.list_blobs(name_starts_with=source)):
            blob = self.container.get_blob_client(target + found.name[len(source):])
            blob.start_copy_from_url(self.container.get_blob_client(found.name).url)


class Gcs:
    def __init__(self):
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        client = storage.Client(
            project="tests",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": variable("AGENTS_TEST_GCS")},
        )
        self.bucket = client.bucket(variable("AGENTS_TEST_GCS_BUCKET"))

    def get(self, key):
        return self.bucket.blob(key).download_as_bytes()

    def head(self, key):
        blob = self.bucket.get_blob(key)
        return blob.content_type, dict(blob.metadata or {})

    def put(self, key, content, content_type, metadata):
        blob = self.bucket.blob(key)
        blob.metadata = metadata
        blob.upload_from_string(content, content_type=content_type)

    def mirror(self, source, target):
        for found in list(self.bucket.list_blobs(prefix=source)):
            self.bucket.copy_blob(found, self.bucket, target + found.name[len(source):])


def main():
    cloud, verb, *words = sys.argv[1:]
    client = {"azure": Azure, "gcs": Gcs}[cloud]()
    if verb == "get":
        sys.stdout.buffer.write(client.get(*words))
    elif verb == "head":
        content_type, metadata = client.head(*words)
        json.dump({"content_type": content_type, "metadata": metadata}, sys.stdout)
    elif verb == "put":
        key, content_type, metadata = words
        client.put(key, sys.stdin.buffer.read(), content_type, json.loads(metadata))
    elif verb == "mirror":
        client.mirror(*words)
    else:
        raise SystemExit(__doc__)


main()
