"""An adapter in a folder of a web server."""

import ssl
from contextlib import AbstractAsyncContextManager

from loraplex_contract.errors import InvalidArgument
from loraplex_frontend.sources.addresses import AddressRules
from loraplex_frontend.sources.allow_list import AllowList
from loraplex_frontend.sources.http_files import HttpFiles
from loraplex_frontend.sources.http_url import HttpUrl, url_of
from loraplex_frontend.sources.opened_file import OpenedFile
from loraplex_frontend.sources.source_limits import SourceLimits
from loraplex_frontend.sources.source_uri import SourceUri


class HttpFolder:
    """Redirects lead to what the allow-list covers, or nowhere."""

    def __init__(
        self, uri: SourceUri, *, allowed: AllowList, rules: AddressRules, tls: ssl.SSLContext, limits: SourceLimits
    ) -> None:
        self._uri = uri
        self._allowed = allowed
        self._files = HttpFiles(rules=rules, tls=tls, limits=limits, may_follow=self._may_follow)

    def open(self, file_name: str) -> AbstractAsyncContextManager[OpenedFile]:
        return self._files.open(url_of(self._uri, file_name), file_name)

    def _may_follow(self, url: HttpUrl) -> bool:
        try:
            return self._allowed.covers(url.as_source())
        except InvalidArgument:
            return False
