import java.net.URI;
import java.security.Principal;
import java.util.Arrays;
import java.util.HexFormat;

import org.eclipse.californium.core.CoapClient;
import org.eclipse.californium.core.CoapResponse;
import org.eclipse.californium.core.coap.CoAP.Code;
import org.eclipse.californium.core.coap.Request;
import org.eclipse.californium.core.network.CoapEndpoint;
import org.eclipse.californium.elements.DtlsEndpointContext;
import org.eclipse.californium.elements.auth.RawPublicKeyIdentity;
import org.eclipse.californium.scandium.dtls.PskPublicInformation;

/**
 * A client on Californium and Scandium with a raw public key (RFC 7250) or a
 * pre-shared key, for the tests of interoperation.
 *
 * <pre>
 * RawKeyPeer PSK IDENTITY KEY CID-LENGTH URI
 * RawKeyPeer ALGORITHM PRIVATE PUBLIC SERVER CID-LENGTH [METHOD URI PAYLOAD]...
 * </pre>
 *
 * With a pre-shared key it reads URI, waits for a byte on its standard input, reads it
 * again, and prints code, length and whether the handshake was the same.
 * ALGORITHM is EC or Ed25519; keys are PKCS #8 and SubjectPublicKeyInfo in
 * hexadecimal. It trusts no server but the one with the key SERVER, gives out a
 * connection ID of CID-LENGTH bytes (-1: does not know them), makes the requests
 * one after the other, with Content-Format 261 where there is a payload ("-" is
 * none), and prints one line for each: code, a space, the payload in hexadecimal.
 */
public class RawKeyPeer {
	public static void main(String[] args) throws Exception {
		if (args[0].equals("PSK")) {
			usePSK(args);
			return;
		}
		byte[] server = NodePeer.bytes(args[3]);
		CoapClient client = client(NodePeer.connect(Integer.parseInt(args[4]), args[0], NodePeer.bytes(args[1]), NodePeer.bytes(args[2]), server));
		for (int i = 5; i + 2 < args.length; i += 3) {
			Request request = new Request(Code.valueOf(args[i]));
			request.setURI(new URI(args[i + 1]));
			if (!args[i + 2].equals("-")) {
				request.setPayload(NodePeer.bytes(args[i + 2]));
				request.getOptions().setContentFormat(261);
			}
			CoapResponse r = client.advanced(request);
			if (r == null) {
				System.out.println("none " + request.getSendError());
				System.exit(1);
			}
			Principal peer = r.advanced().getSourceContext().getPeerIdentity();
			if (!(peer instanceof RawPublicKeyIdentity) || !Arrays.equals(((RawPublicKeyIdentity) peer).getKey().getEncoded(), server)) {
				System.out.println("other server " + peer);
				System.exit(1);
			}
			System.out.println(r.getCode() + " " + HexFormat.of().formatHex(r.getPayload()));
		}
		client.shutdown();
		System.exit(0);
	}

	static CoapClient client(CoapEndpoint endpoint) {
		CoapClient client = new CoapClient();
		client.setEndpoint(endpoint);
		client.setTimeout(10000L);
		return client;
	}

	static void usePSK(String[] args) throws Exception {
		CoapClient client = client(NodePeer.connect(Integer.parseInt(args[3]), new PskPublicInformation(args[1]), NodePeer.bytes(args[2])));
		String session = null;
		for (int i = 0; i < 2; i++) {
			if (i == 1) {
				System.in.read();
			}
			Request request = new Request(Code.GET);
			request.setURI(new URI(args[4]));
			CoapResponse r = client.advanced(request);
			if (r == null) {
				System.out.println("none " + request.getSendError());
				System.exit(1);
			}
			String now = String.valueOf(r.advanced().getSourceContext().get(DtlsEndpointContext.KEY_HANDSHAKE_TIMESTAMP));
			System.out.println(r.getCode() + " " + (session == null || session.equals(now) ? "same" : "another"));
			session = now;
		}
		client.shutdown();
		System.exit(0);
	}
}
