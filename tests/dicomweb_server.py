"""A DICOMweb service on loopback with the objects it is given: QIDO-RS in pages, WADO-RS of single instances."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

PAGE = 2
"""Results of one answer, fewer than most services give."""


class Service:
    """``failures`` answers of 503 come before anything; ``token`` is asked for if it is set."""

    def __init__(self, objects):
        self.objects, self.failures, self.token = objects, 0, None
        self.asked: list[str] = []


@contextmanager
def serving(objects):
    service = Service(objects)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            service.asked.append(self.path)
            if service.failures:
                service.failures -= 1
                return self.answer(503, b"")
            if service.token and self.headers["Authorization"] != f"Bearer {service.token}":
                return self.answer(401, b"")
            if found := re.fullmatch(r"/dicom-web/studies/([\d.]+)/series/([\d.]+)/instances/([\d.]+)", url.path):
                return self.instance(*found.groups())
            if found := re.fullmatch(r"/dicom-web/studies(?:/([\d.]+)(?:/series/([\d.]+))?/instances)?", url.path):
                return self.listing(*found.groups(), int(parse_qs(url.query).get("offset", ["0"])[0]))
            return self.answer(404, b"")

        def instance(self, study, series, uid):
            for ds in service.objects:
                if (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID) == (study, series, uid):
                    ds.save_as(file := BytesIO(), enforce_file_format=True)
                    head = b"--edge\r\nContent-Type: application/dicom\r\n\r\n"
                    kind = 'multipart/related; type="application/dicom"; boundary=edge'
                    return self.answer(200, head + file.getvalue() + b"\r\n--edge--\r\n", kind)
            return self.answer(404, b"")

        def listing(self, study, series, offset):
            tags = ("SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "StudyInstanceUID")
            tags += ("NumberOfFrames",)
            found, seen = [], set()
            for ds in service.objects:
                if study is None and ds.StudyInstanceUID not in seen:
                    seen.add(ds.StudyInstanceUID)
                    found.append(only(ds, ("StudyInstanceUID",)))
                elif ds.StudyInstanceUID == study and series in (None, ds.SeriesInstanceUID):
                    found.append(only(ds, tags))
            text = json.dumps(found[offset : offset + PAGE]).encode()
            return self.answer(200, text, "application/dicom+json")

        def answer(self, code, body, kind="text/plain"):
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


def only(ds, names):
    """Some attributes of a dataset in DICOM's JSON."""
    values = ds.to_json_dict(bulk_data_threshold=10**9)
    return {f"{ds[name].tag:08X}": values[f"{ds[name].tag:08X}"] for name in names if name in ds}
