# An interpreter that has started and imported already. Code that is posted to its
# socket runs in a copy of it, which answers with what the code prints:
#   curl --unix-socket /tmp/.python/sock --data-binary @program.py http://python/
import argparse, asyncio, base64, collections, concurrent.futures, contextlib, copy, csv, dataclasses, datetime, decimal
import email, functools, glob, gzip, hashlib, html, http.client, http.server, inspect, io, itertools, json, logging, math
import multiprocessing, operator, os, pathlib, pickle, platform, queue, random, re, secrets, shutil, signal, socket
import socketserver, sqlite3, ssl, statistics, string, struct, subprocess, sys, tempfile, textwrap, threading, time
import traceback, types, typing, unittest, urllib.parse, urllib.request, uuid, zipfile, zlib


class Run(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        code = self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        self.wfile.flush()
        os.dup2(self.connection.fileno(), 1)
        os.dup2(self.connection.fileno(), 2)
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        try:
            exec(compile(code, "<posted>", "exec"), main.__dict__)
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()

    def log_message(self, *args):
        pass


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    max_children = 64


path = os.environ.get("PRELOAD_SOCKET", "/tmp/.python/sock")
os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
with contextlib.suppress(FileNotFoundError):
    os.unlink(path)
Server(path, Run).serve_forever()
